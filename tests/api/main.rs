//! Every action through the real router, store and reconcilers, on a fake host: no
//! VMM, no network. The client is botocore, and botocore's model is the oracle for
//! names on the wire.
//!
//! The Python is `HEARTH_PYTHON`, or else `python3`; it must have boto3. Without
//! it these tests fail when `CI` is `true` and are skipped elsewhere.

mod server;

use hearth::tls::{Authority, Source, Tls};
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
fn odd_http() {
    script("plain_http.py");
}

/// With an authority of its own, which the client is told to trust.
#[test]
fn tls() {
    let Some(python) = python() else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let source = Source::Own {
        folder: folder.path().to_owned(),
        names: vec!["localhost".into(), "127.0.0.1".into()],
    };
    let server = Server::start_tls(Tls::open(source).expect("an authority"));
    let certificate = Authority::certificate_in(folder.path());
    let certificate = certificate.to_str().expect("its path is UTF-8");
    server.run(&python, "tls.py", &[certificate]);
}

#[test]
fn floods() {
    script("flood.py");
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
