"""Holds every registered action against botocore's model.

A request's and an answer's names must be the model's, each with its kind of
value, and each parameter of the model is either declared or refused by name.
"""

import json
import sys

import botocore.session

SCALARS = {
    "string": {"string", "blob", "timestamp"},
    "integer": {"integer", "long"},
    "boolean": {"boolean"},
    "float": {"float", "double"},
}
faults = []


def request_name(protocol, name, shape):
    ser = shape.serialization
    if protocol == "ec2":
        if "queryName" in ser:
            return ser["queryName"]
        name = ser.get("name", name)
        return name[0].upper() + name[1:]
    return ser.get("name", name)


def response_name(protocol, name, shape):
    return shape.serialization.get("name", name)


def compare(where, ours, model, naming, declared):
    """Ours against the model's; writes down each dotted name on the way."""
    kind = ours["type"]
    if kind in SCALARS:
        if model.type_name not in SCALARS[kind]:
            faults.append(f"{where}: {kind} here, {model.type_name} in the model")
        return
    if kind != model.type_name:
        faults.append(f"{where}: {kind} here, {model.type_name} in the model")
    elif kind == "list":
        compare(where, ours["item"], model.member, naming, declared)
    else:
        members = {naming(n, s): s for n, s in model.members.items()}
        for member in ours["members"]:
            name = f"{where}.{member['name']}" if where else member["name"]
            declared[name] = None
            if member["name"] not in members:
                faults.append(f"{name}: not in the model: {sorted(members)}")
            else:
                compare(name, member["shape"], members[member["name"]], naming, declared)


def missing(where, model, naming, declared, refused, seen=()):
    """The model's parameters that are neither declared nor refused."""
    for name, shape in model.members.items():
        path = naming(name, shape)
        path = f"{where}.{path}" if where else path
        if path in refused:
            continue
        if path not in declared:
            yield path
            continue
        inner = shape.member if shape.type_name == "list" else shape
        if inner.type_name == "structure" and inner.name not in seen:
            yield from missing(path, inner, naming, declared, refused, (*seen, inner.name))


def exists(path, model, naming):
    """Whether the model has this parameter."""
    for part in path.split("."):
        while model.type_name == "list":
            model = model.member
        if model.type_name != "structure":
            return False
        members = {naming(n, s): s for n, s in model.members.items()}
        if part not in members:
            return False
        model = members[part]
    return True


def check(model, action):
    protocol = model.metadata["protocol"]
    try:
        operation = model.operation_model(action["name"])
    except Exception:
        faults.append("no such operation")
        return

    def naming(name, shape):
        return request_name(protocol, name, shape)

    declared = {"DryRun": None} if action["dry_run"] else {}
    refused = set(action["unsupported"])
    shape = operation.input_shape
    if shape is not None:
        compare("", action["request"], shape, naming, declared)
        if action["dry_run"] and not exists("DryRun", shape, naming):
            faults.append("the model has no DryRun")
        for path in sorted(refused):
            if not exists(path, shape, naming):
                faults.append(f"{path} is refused, but not in the model")
            if path in declared:
                faults.append(f"{path} is refused and declared")
        # One that is neither would be ignored: a repeated call would do its work twice.
        tokened = exists("ClientToken", shape, naming)
        if action["idempotent"] != (tokened and "ClientToken" not in refused):
            faults.append("its ClientToken is neither kept nor refused by name")
        lost = list(missing("", shape, naming, declared, refused))
        if lost:
            faults.append("neither declared nor refused: " + json.dumps(lost))
    elif action["request"]["members"]:
        faults.append("the model has no parameters at all")

    output = operation.output_shape
    if output is None or not output.members:
        members = [m["name"] for m in action["response"]["members"]]
        if members not in ([], ["return"]):
            faults.append(f"the model has no answer, here it has {members}")
    else:
        compare("", action["response"], output,
                lambda n, s: response_name(protocol, n, s), {})


session = botocore.session.get_session()
count = bad = 0
with open(sys.argv[1]) as file:
    services = json.load(file)
for service in services:
    model = session.get_service_model(service["botocore"], api_version=service["version"])
    if model.signing_name != service["signing_name"]:
        print(f"{service['botocore']}: signs as {model.signing_name}")
        bad += 1
    unknown = set(model.operation_names) - set(service["known"])
    if unknown:
        print(f"{service['botocore']}: not in operations.txt: {sorted(unknown)}")
        bad += 1
    names = [a["name"] for a in service["actions"]]
    assert len(names) == len(set(names)), "an action is registered twice"
    for action in service["actions"]:
        faults.clear()
        check(model, action)
        if action["iam"] != f"{service['arn_name']}:{action['name']}":
            faults.append(f"its IAM name is {action['iam']}")
        for fault in faults:
            print(f"{action['name']}: {fault}")
        count += 1
        bad += bool(faults)
print(f"{count} actions, {bad} bad")
sys.exit(1 if bad else 0)
