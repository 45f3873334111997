//! A `hearth serve` of a test's own, and its client.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_hearth");
/// How long anything that a test waits for may take.
const DEADLINE: Duration = Duration::from_secs(120);

/// An access key.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) secret: String,
}

/// What a call was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Answer {
    /// The texts of all elements of this name.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let (open, close) = (format!("<{name}>"), format!("</{name}>"));
        let rest = self.body.split(open.as_str()).skip(1);
        rest.filter_map(|rest| rest.split_once(close.as_str()))
            .map(|(text, _)| text)
            .collect()
    }

    /// The text of the one element of this name.
    pub(crate) fn one(&self, name: &str) -> &str {
        match self.all(name)[..] {
            [text] => text,
            _ => panic!("there is not one {name} in {self:?}"),
        }
    }

    /// Of a call that must have been carried out.
    pub(crate) fn done(self) -> Self {
        assert_eq!(self.status, 200, "{}", self.body);
        self
    }

    /// The error's code.
    pub(crate) fn refused(&self) -> &str {
        assert_ne!(self.status, 200, "{}", self.body);
        self.one("Code")
    }
}

/// A running `hearth serve`, and its folder. They go with the value.
pub(crate) struct Hearth {
    process: Child,
    endpoint: String,
    /// The default account's key.
    pub(crate) key: Key,
    folder: TempDir,
}

impl Hearth {
    /// With one simulated host. The program and its arguments are the last ones of the
    /// command `around`, whose first is the data folder: `["env"]` to change nothing.
    pub(crate) fn start(around: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        std::fs::create_dir(&data).expect("a folder for the data");
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let [wrapper, rest @ ..] = around else {
            panic!("no command")
        };
        let mut process = Command::new(wrapper)
            .args(rest)
            .arg(PROGRAM)
            .args(["serve", "--hosts", "simulated:1"])
            .args(["--cpu-overcommit", "64", "--memory-overcommit", "4"])
            .args(["--public-pool", "100.64.0.0/12", "--listen", "127.0.0.1:0"])
            .args(["--name", &format!("test-{}-{number}", std::process::id())])
            .arg("--data-dir")
            .arg(&data)
            .arg("--run-dir")
            .arg(folder.path().join("run"))
            .env("HEARTH_LOG", "warn")
            .env("DATA", &data)
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let said = process.stdout.take().expect("piped");
        // From here on it ends with the value, whatever it says.
        let mut hearth = Self {
            process,
            endpoint: String::new(),
            key: Key {
                id: String::new(),
                secret: String::new(),
            },
            folder,
        };
        let (sender, line) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(said).read_line(&mut line);
            let _ = sender.send(read.map(|_| line));
        });
        let line = line.recv_timeout(DEADLINE).expect("it says something");
        let line = line.expect("it says where it listens");
        hearth.endpoint = line
            .split_whitespace()
            .last()
            .unwrap_or_default()
            .to_owned();
        assert!(hearth.endpoint.starts_with("http://"), "it said: {line:?}");
        hearth.key = hearth.first_key();
        hearth
    }

    /// Its data folder, as it sees it: it may have mounts of its own.
    pub(crate) fn data(&self) -> PathBuf {
        let seen = self.folder.path().join("data");
        let seen = seen.strip_prefix("/").expect("an absolute path");
        Path::new("/proc")
            .join(self.pid().to_string())
            .join("root")
            .join(seen)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    fn first_key(&self) -> Key {
        let text = std::fs::read(self.data().join("credentials.json")).expect("the key is there");
        let file: Value = serde_json::from_slice(&text).expect("JSON");
        let key = &file["accounts"][0]["keys"][0];
        let text = |name: &str| key[name].as_str().expect("a text").to_owned();
        Key {
            id: text("access_key_id"),
            secret: text("secret_access_key"),
        }
    }

    /// Calls EC2.
    pub(crate) fn ec2(&self, action: &str, parameters: &[(&str, &str)]) -> Answer {
        self.call(&self.key, "ec2", "2016-11-15", action, parameters)
    }

    /// Calls a service with a key.
    pub(crate) fn call(
        &self,
        key: &Key,
        service: &str,
        version: &str,
        action: &str,
        parameters: &[(&str, &str)],
    ) -> Answer {
        let body = form_urlencoded::Serializer::new(String::new())
            .append_pair("Action", action)
            .append_pair("Version", version)
            .extend_pairs(parameters)
            .finish();
        let mut curl = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "100"])
            .args(["--aws-sigv4", &format!("aws:amz:us-east-1:{service}")])
            .args(["--user", &format!("{}:{}", key.id, key.secret)])
            .args(["--write-out", "\n%{http_code}", "--data-binary", "@-"])
            .arg(&self.endpoint)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("curl starts");
        let mut stdin = curl.stdin.take().expect("piped");
        stdin.write_all(body.as_bytes()).expect("curl takes it");
        drop(stdin);
        let said = curl.wait_with_output().expect("curl ends");
        assert!(said.status.success(), "{action}: no answer");
        let said = String::from_utf8(said.stdout).expect("UTF-8");
        let (body, status) = said.rsplit_once('\n').expect("a status");
        Answer {
            status: status.parse().expect("a number"),
            body: body.to_owned(),
        }
    }

    /// Waits until no instance is on its way to another state.
    pub(crate) fn settled(&self) {
        until("no instance is on its way", || {
            let parameters = [
                ("MaxResults", "5"),
                ("Filter.1.Name", "instance-state-name"),
                ("Filter.1.Value.1", "pending"),
                ("Filter.1.Value.2", "stopping"),
                ("Filter.1.Value.3", "shutting-down"),
            ];
            let left = self.ec2("DescribeInstances", &parameters).done();
            let left = left.all("instanceId").join(" ");
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
    }

    /// The ids of all instances in a state, page by page.
    pub(crate) fn instances(&self, state: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let mut parameters = vec![
                ("MaxResults", "1000"),
                ("Filter.1.Name", "instance-state-name"),
                ("Filter.1.Value.1", state),
            ];
            parameters.extend(token.as_deref().map(|token| ("NextToken", token)));
            let page = self.ec2("DescribeInstances", &parameters).done();
            found.extend(page.all("instanceId").into_iter().map(str::to_owned));
            match page.all("nextToken")[..] {
                [next] => token = Some(next.to_owned()),
                _ => return found,
            }
        }
    }

    /// Starts so many instances; their ids.
    pub(crate) fn run_instances(&self, count: usize, more: &[(&str, &str)]) -> Answer {
        let images = self.ec2("DescribeImages", &[]).done();
        let count = count.to_string();
        let mut parameters = vec![
            ("ImageId", images.one("imageId")),
            ("InstanceType", "t3.micro"),
            ("MinCount", &count),
            ("MaxCount", &count),
        ];
        parameters.extend(more);
        self.ec2("RunInstances", &parameters)
    }

    /// Terminates these.
    pub(crate) fn terminate(&self, ids: &[String]) -> Answer {
        let names: Vec<String> = (1..=ids.len()).map(|n| format!("InstanceId.{n}")).collect();
        let parameters: Vec<_> = names
            .iter()
            .map(String::as_str)
            .zip(ids.iter().map(String::as_str))
            .collect();
        self.ec2("TerminateInstances", &parameters)
    }

    /// Whether it runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.process.try_wait().expect("asked").is_none()
    }
}

impl Drop for Hearth {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Looks again and again until `look` gives something.
pub(crate) fn until<T, E: std::fmt::Debug>(
    what: &str,
    mut look: impl FnMut() -> Result<T, E>,
) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) => assert!(Instant::now() < end, "never: {what}; seen last: {seen:?}"),
        }
        thread::sleep(Duration::from_millis(20));
    }
}
