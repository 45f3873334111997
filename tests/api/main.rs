//! Every action through the real router, store and reconcilers, on a fake host: no
//! VMM, no network. The client is botocore, and botocore's model is the oracle for
//! names on the wire.
//!
//! The Python is `HEARTH_PYTHON`, or else `python3`; it must have boto3. Without
//! it these tests fail when `CI` is `true` and are skipped elsewhere.

mod server;

use server::{Server, python};

/// Runs one of the scripts beside this file against a server of its own.
fn script(name: &str) {
    let Some(python) = python() else {
        return;
    };
    let server = Server::start();
    server.run(&python, name, &[]);
}

/// Every action's names on the wire, held against botocore's model.
#[test]
fn names_on_the_wire_are_botocores() {
    let Some(python) = python() else {
        return;
    };
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    serde_json::to_writer(&file, &server::shapes()).expect("shapes are JSON");
    let path = file.path().to_str().expect("its path is UTF-8");
    Server::start().run(&python, "oracle.py", &[path]);
}

#[test]
fn the_way_in() {
    script("way_in.py");
}

#[test]
fn key_pairs() {
    script("key_pairs.py");
}

#[test]
fn security_groups() {
    script("security_groups.py");
}

#[test]
fn instances() {
    script("instances.py");
}

#[test]
fn networks_images_and_types() {
    script("describe.py");
}

#[test]
fn tags() {
    script("tags.py");
}
