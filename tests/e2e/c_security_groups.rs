//! Security groups between instances: seen by packets, not by records.

use hearth_tests::{Cloud, Tcp, wait};

/// Two instances in two groups: what one may ask of the other follows the rules
/// while they change, by group and by address.
#[test]
fn a_rule_that_names_a_group_follows_its_members() {
    let cloud = Cloud::running();
    let aws = &cloud.aws;
    let group = |name: &str| {
        let made = aws.call(&[
            "ec2",
            "create-security-group",
            "--group-name",
            name,
            "--description",
            name,
        ]);
        made["GroupId"].as_str().expect("a group id").to_owned()
    };
    let (web, client) = (group("web"), group("client"));
    let allow = |what: &[&str]| {
        aws.call(
            &[
                &[
                    "ec2",
                    "authorize-security-group-ingress",
                    "--group-id",
                    &web,
                ],
                what,
            ]
            .concat(),
        );
    };

    let image = cloud.image("micro");
    // The client asks the server over and over, and shows on port 80 what came of it.
    let server =
        "#!/bin/sh\nmkdir -p /srv; echo served > /srv/index.html; busybox httpd -p 80 -h /srv\n";
    let launch = |group: &str, user_data: &str| {
        let made = aws.call(&[
            "ec2",
            "run-instances",
            "--image-id",
            &image,
            "--instance-type",
            "t3.nano",
            "--security-group-ids",
            group,
            "--user-data",
            user_data,
        ]);
        made["Instances"][0]["InstanceId"]
            .as_str()
            .expect("an instance id")
            .to_owned()
    };
    let a = launch(&web, server);
    let server_ip = cloud.wait_for(&a, "running", 60).private_ip().to_owned();
    let asker = format!(
        "#!/bin/sh\nmkdir -p /srv; busybox httpd -p 80 -h /srv\n\
         (while :; do timeout 2 wget -q -O /srv/new http://{server_ip}/ || echo nothing > /srv/new; \
         mv /srv/new /srv/index.html; sleep 1; done) >/dev/null 2>&1 &\n"
    );
    let b = launch(&client, &asker);
    let b_ip = cloud
        .wait_for(&b, "running", 60)
        .public_ip()
        .expect("a public address")
        .to_owned();
    aws.call(&[
        "ec2",
        "authorize-security-group-ingress",
        "--group-id",
        &client,
        "--protocol",
        "tcp",
        "--port",
        "80",
        "--cidr",
        "0.0.0.0/0",
    ]);
    let sees = |what: &str| {
        wait::until(&format!("the client sees \"{what}\""), 120, || match cloud
            .host
            .curl(&format!("http://{b_ip}/"))
        {
            Ok(page) if page == what => Ok(()),
            other => Err(format!("{other:?}")),
        });
    };

    sees("nothing");
    allow(&[
        "--protocol",
        "tcp",
        "--port",
        "80",
        "--source-group",
        &client,
    ]);
    sees("served");
    let a_ip = cloud
        .instance(&a)
        .public_ip()
        .expect("a public address")
        .to_owned();
    assert_ne!(
        cloud.host.tcp(&a_ip, 80),
        Tcp::Open,
        "a rule for a group opened the port to all"
    );
    let rule =
        format!("IpProtocol=tcp,FromPort=80,ToPort=80,UserIdGroupPairs=[{{GroupId={client}}}]");
    aws.call(&[
        "ec2",
        "revoke-security-group-ingress",
        "--group-id",
        &web,
        "--ip-permissions",
        &rule,
    ]);
    sees("nothing");

    let said = aws.refused(&["ec2", "delete-security-group", "--group-id", &web]);
    assert!(said.contains("DependencyViolation"), "{said}");
    aws.call(&["ec2", "terminate-instances", "--instance-ids", &a, &b]);
    for id in [&a, &b] {
        cloud.wait_for(id, "terminated", 60);
    }
    for id in [&web, &client] {
        aws.call(&["ec2", "delete-security-group", "--group-id", id]);
    }
}
