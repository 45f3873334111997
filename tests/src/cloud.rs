//! The running cloud, as a person with the AWS CLI sees it.

use std::process::Command;

use serde_json::Value;

use crate::{Host, host, wait};

/// The cloud that `hearth.env` points at.
pub struct Cloud {
    /// The machine below it.
    pub host: Host,
    /// Its AWS CLI.
    pub aws: Aws,
}

/// Debian's AWS CLI, pointed at the cloud.
pub struct Aws {
    endpoint: String,
}

/// What the AWS CLI said when it failed.
#[derive(Debug)]
pub struct Failure(pub String);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.trim())
    }
}

/// An instance as DescribeInstances shows it.
#[derive(Debug, Clone)]
pub struct Instance(pub Value);

impl Instance {
    /// Its id.
    pub fn id(&self) -> &str {
        self.0["InstanceId"]
            .as_str()
            .expect("every instance has an id")
    }
    /// The name of its state.
    pub fn state(&self) -> &str {
        self.0["State"]["Name"].as_str().unwrap_or("(none)")
    }
    /// Its public address, if it has one.
    pub fn public_ip(&self) -> Option<&str> {
        self.0["PublicIpAddress"].as_str()
    }
    /// Its private address.
    pub fn private_ip(&self) -> &str {
        self.0["PrivateIpAddress"].as_str().unwrap_or("(none)")
    }
}

impl Aws {
    /// Runs `aws <args…>`; a placeholder-free list, so that a value may hold spaces.
    ///
    /// # Errors
    /// When it fails: its standard error.
    pub fn try_call(&self, args: &[&str]) -> Result<Value, Failure> {
        let done = Command::new("/usr/bin/aws")
            .args([
                "--endpoint-url",
                &self.endpoint,
                "--output",
                "json",
                "--no-cli-pager",
            ])
            .args(args)
            .output()
            .map_err(|e| Failure(format!("can't run /usr/bin/aws (Debian's awscli): {e}")))?;
        if !done.status.success() {
            return Err(Failure(String::from_utf8_lossy(&done.stderr).into_owned()));
        }
        if done.stdout.iter().all(u8::is_ascii_whitespace) {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&done.stdout)
            .map_err(|e| Failure(format!("the AWS CLI's output is no JSON: {e}")))
    }

    /// The same, for a call that must work.
    ///
    /// # Panics
    /// When it doesn't.
    pub fn call(&self, args: &[&str]) -> Value {
        self.try_call(args)
            .unwrap_or_else(|e| panic!("aws {}: {e}", args.join(" ")))
    }

    /// The same, for a call that must fail; returns what the CLI said.
    ///
    /// # Panics
    /// When it works.
    pub fn refused(&self, args: &[&str]) -> String {
        match self.try_call(args) {
            Ok(answer) => panic!(
                "aws {} should have been refused, but: {answer}",
                args.join(" ")
            ),
            Err(failure) => failure.0,
        }
    }
}

impl Cloud {
    /// The cloud of `AWS_ENDPOINT_URL`, as `hearth.env` sets it.
    ///
    /// # Panics
    /// When no cloud is named.
    pub fn running() -> Self {
        let endpoint = std::env::var("AWS_ENDPOINT_URL").expect(
            "AWS_ENDPOINT_URL names no cloud; run scripts/up, then `set -a; . ./hearth.env`",
        );
        Self {
            host: Host::of_the_cloud(),
            aws: Aws { endpoint },
        }
    }

    /// The id of the image with this name.
    pub fn image(&self, name: &str) -> String {
        let filter = format!("Name=name,Values={name}");
        let found = self
            .aws
            .call(&["ec2", "describe-images", "--filters", &filter]);
        found["Images"][0]["ImageId"]
            .as_str()
            .unwrap_or_else(|| panic!("no image is named {name}: {found}"))
            .to_owned()
    }

    /// One instance.
    pub fn instance(&self, id: &str) -> Instance {
        let found = self
            .aws
            .call(&["ec2", "describe-instances", "--instance-ids", id]);
        Instance(found["Reservations"][0]["Instances"][0].clone())
    }

    /// Waits until the instance is in a state.
    pub fn wait_for(&self, id: &str, state: &str, seconds: u64) -> Instance {
        wait::until(&format!("{id} is {state}"), seconds, || {
            let seen = self.instance(id);
            if seen.state() == state {
                Ok(seen)
            } else {
                Err(seen.0.to_string())
            }
        })
    }

    /// `kill -9` of the control plane, and another with the same flags: how `scripts/up`
    /// runs it is read off the process itself.
    pub fn kill_and_restart(&self) {
        self.kill_and_restart_with("");
    }

    /// The same, with the flags that a line of bash makes of those in the array `args`.
    pub fn kill_and_restart_with(&self, edit: &str) {
        self.host.run(&format!(
            "pid=$(hearth_pid); exe=$(readlink -f /proc/$pid/exe)
             mapfile -d '' args < /proc/$pid/cmdline
             {edit}
             log=$(readlink -f /proc/$pid/fd/2)
             kill -9 $pid; while [ -e /proc/$pid ] && ! grep -q ^State:.Z /proc/$pid/status; do sleep 0.1; done
             [ -f \"$log\" ] || log=/dev/null
             setsid \"$exe\" \"${{args[@]:1}}\" >> \"$log\" 2>&1 < /dev/null &",
        ));
        wait::until("hearth answers again", 60, || {
            self.aws.try_call(&["ec2", "describe-regions"])
        });
    }

    /// Runs `tests/e2e/<script>` with boto3.
    ///
    /// # Panics
    /// When it fails; what it printed has been shown.
    pub fn boto3(&self, script: &str, args: &[&str]) {
        let python = std::env::var("HEARTH_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let path = host::repository().join("tests/e2e").join(script);
        let status = Command::new(python)
            .arg(path)
            .args(args)
            .status()
            .expect("python runs");
        assert!(status.success(), "{script} {}: {status}", args.join(" "));
    }
}
