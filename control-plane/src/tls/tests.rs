use std::os::unix::fs::PermissionsExt as _;

use rustls::{
    ClientConfig, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    pki_types::{ServerName, UnixTime},
};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn own(folder: &Path) -> Source {
    Source::Own {
        folder: folder.join("tls"),
        names: vec!["localhost".into(), "127.0.0.1".into(), "box".into()],
    }
}

fn trust(pem: &str) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    roots.add(certificate).unwrap();
    roots
}

fn held(source: &Source, now: SystemTime) -> Held {
    hold(source, &ring::default_provider(), now).unwrap()
}

#[test]
fn the_authority_is_made_once_and_vouches_for_each_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let source = own(dir.path());
    let (first, second) = (held(&source, now), held(&source, now + DAY));
    assert_ne!(first.certified.cert, second.certified.cert);
    let folder = dir.path().join("tls");
    let mode = |name: &str| {
        let meta = fs::metadata(folder.join(name)).unwrap();
        meta.permissions().mode() & 0o777
    };
    assert_eq!((mode("ca.key"), mode("ca.crt")), (0o600, 0o644));
    let authority = Authority::load_or_create(&folder, now).unwrap();
    let provider = Arc::new(ring::default_provider());
    let roots = Arc::new(trust(&authority.certificate));
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider)
        .build()
        .unwrap();
    for held in [&first, &second] {
        let verify = |name: &str, at: SystemTime| {
            let name = ServerName::try_from(name.to_owned()).unwrap();
            let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap();
            let at = UnixTime::since_unix_epoch(at);
            let certificate = &held.certified.cert[0];
            verifier.verify_server_cert(certificate, &[], &name, &[], at)
        };
        for name in ["localhost", "127.0.0.1", "box"] {
            verify(name, now + DAY).unwrap();
        }
        assert!(verify("elsewhere.example", now + DAY).is_err());
        // It is renewed while it is still good.
        let due = held.renew.unwrap();
        assert!(!held.is_due(&source, due - DAY) && held.is_due(&source, due));
        verify("box", due + DAY * 20).unwrap();
        assert!(verify("box", due + DAY * 40).is_err());
    }
}

#[test]
fn a_given_certificate_is_read_and_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
    let write = || {
        let made = rcgen::generate_simple_self_signed(vec!["box".to_owned()]).unwrap();
        fs::write(&certificate, made.cert.pem()).unwrap();
        fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    };
    write();
    let source = Source::Given {
        certificate: certificate.clone(),
        key: key.clone(),
    };
    let now = SystemTime::now();
    let first = held(&source, now);
    assert!(!first.is_due(&source, now));
    let file = fs::File::options().write(true).open(&key).unwrap();
    file.set_modified(now + DAY).unwrap();
    assert!(first.is_due(&source, now));

    // A key of another certificate, and no certificate at all.
    let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
    fs::write(&key, other).unwrap();
    assert!(hold(&source, &ring::default_provider(), now).is_err());
    fs::write(&certificate, "").unwrap();
    assert!(hold(&source, &ring::default_provider(), now).is_err());
}

#[tokio::test]
async fn a_client_that_trusts_the_authority_talks() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let dir = tempfile::tempdir().unwrap();
    let tls = Tls::open(own(dir.path())).unwrap();
    let folder = dir.path().join("tls");
    let authority = Authority::load_or_create(&folder, SystemTime::now()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(trust(&authority.certificate))
        .with_no_client_auth();
    let (near, far) = tokio::io::duplex(1 << 14);
    let acceptor = tls.acceptor();
    let server = tokio::spawn(async move {
        let mut stream = acceptor.accept(far).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = connector.connect(name, near).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
    server.await.unwrap();
}
