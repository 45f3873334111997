use std::{fs, process::Command, sync::LazyLock};

use super::*;

static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());
static IDENTITY: LazyLock<Arc<Identity>> = LazyLock::new(|| {
    let identity = Identity::load_or_create(FOLDER.path(), SystemTime::now());
    Arc::new(identity.unwrap())
});

/// One for all tests: its prime numbers take their time.
pub(in crate::metadata) fn identity() -> Arc<Identity> {
    Arc::clone(&IDENTITY)
}

fn openssl(folder: &Path, arguments: &[&str]) -> Result<String, String> {
    let mut openssl = Command::new("openssl");
    let done = openssl.current_dir(folder).args(arguments).output();
    let done = done.expect("openssl is installed");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match done.status.success() {
        true => Ok(text(&done.stdout)),
        false => Err(text(&done.stderr)),
    }
}

/// By the commands of AWS's page.
#[test]
fn openssl_verifies_each_signature() {
    let identity = identity();
    let document = "{\n  \"instanceId\": \"i-1\"\n}";
    let signed = identity.sign(document).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let put = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
    put("document", document);
    put("certificate", &identity.certificate);
    let pem = |text: &str| format!("-----BEGIN PKCS7-----\n{text}\n-----END PKCS7-----\n");
    put("pkcs7", &pem(&signed.pkcs7));
    put("encoded", &format!("{}\n", signed.signature));

    let verify = [
        "smime",
        "-verify",
        "-in",
        "pkcs7",
        "-inform",
        "PEM",
        "-certfile",
        "certificate",
        "-noverify",
    ];
    assert_eq!(openssl(folder, &verify).unwrap(), document);
    // As the option of RSA-2048 has it: with the document beside it.
    let beside: Vec<_> = verify.into_iter().chain(["-content", "document"]).collect();
    assert_eq!(openssl(folder, &beside).unwrap(), document);
    openssl(
        folder,
        &["base64", "-d", "-in", "encoded", "-out", "signature"],
    )
    .unwrap();
    let key = openssl(folder, &["x509", "-pubkey", "-noout", "-in", "certificate"]);
    put("key", &key.unwrap());
    let digest = [
        "dgst",
        "-sha256",
        "-verify",
        "key",
        "-signature",
        "signature",
        "document",
    ];
    assert_eq!(openssl(folder, &digest).unwrap().trim(), "Verified OK");

    put("document", &document.replace("i-1", "i-2"));
    assert!(openssl(folder, &digest).is_err());
}

#[test]
fn is_the_same_after_a_restart_and_keeps_so_much() {
    let first = identity();
    let again = Identity::load_or_create(FOLDER.path(), SystemTime::now()).unwrap();
    assert_eq!(again.certificate, first.certificate);
    let signed = again.sign("a").unwrap();
    assert_eq!(signed, first.sign("a").unwrap());
    assert!(
        Arc::ptr_eq(&signed, &again.sign("a").unwrap()),
        "signed once"
    );
    for n in 0..MOST_KEPT + 10 {
        again.sign(&n.to_string()).unwrap();
    }
    assert!(again.made.lock().unwrap().len() <= MOST_KEPT);
}
