//! Another machine on the network: a namespace on the host, with one address.

use crate::Host;

/// A neighbour of the host, `198.51.100.10`, that reaches public addresses
/// through it; what "from the internet" is to a test.
pub struct Outside {
    host: Host,
    netns: &'static str,
}

/// How an attempt to connect ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tcp {
    /// Somebody answered.
    Open,
    /// The other side said no: a packet came through.
    Refused,
    /// Nothing came back.
    Dropped,
}

/// The address that the outside speaks from.
pub const ADDRESS: &str = "198.51.100.10";

impl Outside {
    /// Makes it.
    pub fn new(host: &Host) -> Self {
        let netns = "test-outside";
        host.run(&format!(
            "ip netns del {netns} 2>/dev/null; ip link del {netns} 2>/dev/null
             set -e
             ip netns add {netns}
             ip link add {netns} type veth peer name eth0 netns {netns}
             ip addr add 198.51.100.1/24 dev {netns}
             ip link set {netns} up
             ip -n {netns} link set lo up
             ip -n {netns} addr add {ADDRESS}/24 dev eth0
             ip -n {netns} link set eth0 up
             ip -n {netns} route add default via 198.51.100.1"
        ));
        Self {
            host: host.clone(),
            netns,
        }
    }

    /// Runs a shell script there.
    pub fn try_run(&self, script: &str) -> crate::Output {
        self.host.try_run(&format!(
            "ip netns exec {} bash -s <<'OUTSIDE'\n{script}\nOUTSIDE",
            self.netns
        ))
    }

    /// Fetches a page.
    ///
    /// # Errors
    /// What curl said.
    pub fn curl(&self, url: &str) -> Result<String, String> {
        self.try_run(&format!("curl -sS --fail --max-time 5 {url}"))
            .ok()
    }

    /// Runs a command in an instance, over ssh.
    ///
    /// # Errors
    /// What ssh or the command said.
    pub fn ssh(
        &self,
        key: &str,
        user: &str,
        address: &str,
        command: &str,
    ) -> Result<String, String> {
        self.try_run(&ssh(key, user, address, command)).ok()
    }

    /// Tries a TCP port.
    pub fn tcp(&self, address: &str, port: u16) -> Tcp {
        tcp(&|script| self.try_run(script), address, port)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.host.try_run(&format!(
            "ip netns del {}; ip link del {} 2>/dev/null",
            self.netns, self.netns
        ));
    }
}

/// A script that runs `command` on `user@address`. The key is written anew each
/// time, so that the script carries all it needs. A connection to an instance that
/// goes down meanwhile ends too.
fn ssh(key: &str, user: &str, address: &str, command: &str) -> String {
    let key = key.trim();
    format!(
        "umask 077; k=$(mktemp); trap 'rm -f $k' EXIT
cat > $k <<'KEY'
{key}
KEY
cat > $k.cmd <<'CMD'
{command}
CMD
ssh -i $k -o BatchMode=yes -o ConnectTimeout=8 -o ServerAliveInterval=5 -o ServerAliveCountMax=3 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR {user}@{address} sh -s < $k.cmd
s=$?; rm -f $k.cmd; exit $s"
    )
}

impl Host {
    /// Tries a TCP port from the host itself.
    pub fn tcp(&self, address: &str, port: u16) -> Tcp {
        tcp(&|script| self.try_run(script), address, port)
    }

    /// Fetches a page from the host itself.
    ///
    /// # Errors
    /// What curl said.
    pub fn curl(&self, url: &str) -> Result<String, String> {
        self.try_run(&format!("curl -sS --fail --max-time 5 {url}"))
            .ok()
    }
}

fn tcp(run: &dyn Fn(&str) -> crate::Output, address: &str, port: u16) -> Tcp {
    // Bash's own /dev/tcp: no tool to install; 124 is timeout(1)'s own status.
    let tried = run(&format!(
        "timeout 4 bash -c 'exec 3<>/dev/tcp/{address}/{port}'"
    ));
    match tried.status {
        0 => Tcp::Open,
        124 => Tcp::Dropped,
        _ if tried.stderr.contains("refused") => Tcp::Refused,
        _ => Tcp::Dropped,
    }
}
