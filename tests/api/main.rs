//! Every action through the real router, store and reconcilers, on a simulated host: no
//! VMM, no network. The tests are pytest's, in this folder; the client is botocore,
//! and botocore's model is the oracle for names on the wire. This program gives
//! them their clouds, one for each file of tests, and its count is theirs.
//!
//! The Python is `HEARTH_PYTHON`, or else `python3`; it must have boto3, pytest and
//! pytest-xdist. Without them these tests fail when `CI` is `true` and are skipped
//! elsewhere. `cargo test -p hearth-tests --test api WORDS` runs those of that name.

mod server;

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, ExitCode};

use hearth::tls::{Authority, Source, Tls};

use server::{Server, shapes};

fn main() -> ExitCode {
    let Some(python) = python() else {
        return ExitCode::from(u8::from(std::env::var("CI").as_deref() == Ok("true")));
    };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
    let address = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        for asking in listener.incoming().flatten() {
            std::thread::spawn(move || {
                if let Err(error) = answer(asking) {
                    eprintln!("a test's question for a cloud: {error}");
                }
            });
        }
    });
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("api");
    let mut pytest = Command::new(python);
    pytest
        .args(["-m", "pytest", "-n", "auto", "--dist", "loadfile"])
        .arg(".")
        .current_dir(folder)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("HEARTH_TEST_CLOUDS", address.to_string());
    // Of libtest's arguments, the name; its flags are for libtest.
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    if !words.is_empty() {
        pytest.args(["-k", &words.join(" or ")]);
    }
    let status = pytest.status().expect("python runs");
    // 5: no test has such a name.
    ExitCode::from(u8::from(!status.success() && status.code() != Some(5)))
}

/// What one connection of conftest.py asks for.
fn answer(asking: TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(asking.try_clone()?);
    let mut question = String::new();
    reader.read_line(&mut question)?;
    let say = |answer: &serde_json::Value| writeln!(&asking, "{answer}");
    match question.trim() {
        "shapes" => say(&shapes()),
        "cloud" => {
            let server = Server::start();
            say(&server.told())?;
            wait_for_the_end(reader);
            drop(server);
            Ok(())
        }
        // With an authority of its own, which the client is told to trust.
        "cloud tls" => {
            let folder = tempfile::tempdir()?;
            let source = Source::Own {
                folder: folder.path().to_owned(),
                names: vec!["localhost".into(), "127.0.0.1".into()],
            };
            let tls = Tls::open(source).map_err(io::Error::other)?;
            let server = Server::start_tls(tls);
            let mut told = server.told();
            let certificate = Authority::certificate_in(folder.path());
            told["certificate"] = certificate.display().to_string().into();
            say(&told)?;
            wait_for_the_end(reader);
            drop(server);
            Ok(())
        }
        other => Err(io::Error::other(format!("no such thing: {other:?}"))),
    }
}

/// A cloud goes when the test's end of the connection does, in whatever way.
fn wait_for_the_end(mut reader: impl io::Read) {
    let _ = io::copy(&mut reader, &mut io::sink());
}

/// The Python with what the tests need; `None`, said aloud, where there is none to be
/// had.
fn python() -> Option<String> {
    let python = std::env::var("HEARTH_PYTHON").unwrap_or_else(|_| "python3".into());
    let found = Command::new(&python)
        .args(["-c", "import boto3, botocore, pytest, xdist"])
        .output()
        .is_ok_and(|output| output.status.success());
    if found {
        return Some(python);
    }
    let _ = writeln!(
        io::stdout(),
        "SKIPPED: {python} lacks boto3, pytest or xdist; HEARTH_PYTHON names one that has them\n\
         test result: ok. 0 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out"
    );
    None
}
