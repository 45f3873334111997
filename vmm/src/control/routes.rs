//! Which request is which command: the table in `hearth_vmm_api`'s documentation.

use hearth_vmm_api::{
    ApiError, Balloon, Change, MAX_PAIRS, MachineChange, NewDisk, NewNic, NewSnapshot, Reboot,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::http::Request;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// The machine's description.
    Describe,
    /// What shall change of the machine.
    ChangeMachine(MachineChange),
    /// The counters.
    Metrics,
    /// The counters as Prometheus reads them.
    Prometheus,
    /// The power button pressed.
    PowerButton,
    /// A non-maskable interrupt sent to every vCPU.
    Nmi,
    /// The machine power-cycled.
    Reset,
    /// The guest asked to go down and come up again.
    Reboot(Reboot),
    /// The process ended.
    Stop,
    /// The vCPUs held.
    Pause,
    /// The vCPUs let go.
    Resume,
    /// The held machine saved.
    Snapshot(NewSnapshot),
    /// The snapshot that is being written given up.
    CancelSnapshot,
    /// The machine handed over to another process.
    HandOver,
    /// A disk put in.
    AddDisk(NewDisk),
    /// The unplug of a disk.
    RemoveDisk(String),
    /// A network interface put in.
    AddNic(NewNic),
    /// The unplug of a network interface.
    RemoveNic(String),
    /// A disk's size looked at again, and what else shall change.
    ChangeDisk(String, Option<Change>),
    /// What shall change of a network interface.
    ChangeNic(String, Change),
    /// How the balloon stands.
    Balloon,
    /// Memory asked of the guest, or given back.
    SetBalloon(Balloon),
}

impl Command {
    /// Whether it changes nothing.
    #[must_use]
    pub fn only_reads(&self) -> bool {
        matches!(
            self,
            Self::Describe | Self::Metrics | Self::Prometheus | Self::Balloon
        )
    }

    /// How many open files may come with it.
    #[must_use]
    pub fn takes_descriptors(&self) -> usize {
        match self {
            Self::AddDisk(_) => 1,
            // The socket on which it is handed over.
            Self::HandOver => 1,
            // Guest memory and the state.
            Self::Snapshot(_) => 2,
            // A tap's queue and a vhost-net for each pair.
            Self::AddNic(_) => 2 * MAX_PAIRS,
            _ => 0,
        }
    }
}

/// What a client gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// JSON or text, or nothing.
    pub body: String,
    /// What the body is: a media type.
    pub kind: &'static str,
}

/// The media type of JSON.
const JSON: &str = "application/json";

impl Answer {
    /// 204: it was done.
    #[must_use]
    pub fn done() -> Self {
        Self {
            status: 204,
            body: String::new(),
            kind: JSON,
        }
    }

    /// 202: it was asked for.
    #[must_use]
    pub fn asked() -> Self {
        Self {
            status: 202,
            body: String::new(),
            kind: JSON,
        }
    }

    /// 200 with a value.
    #[must_use]
    pub fn value(value: &impl Serialize) -> Self {
        match serde_json::to_string(value) {
            Ok(body) => Self {
                status: 200,
                body,
                kind: JSON,
            },
            Err(error) => Self::error(500, &error.to_string()),
        }
    }

    /// 200 with text of Prometheus' format, version 0.0.4.
    #[must_use]
    pub fn text(body: String) -> Self {
        Self {
            status: 200,
            body,
            kind: "text/plain; version=0.0.4",
        }
    }

    /// An error, with what was wrong.
    #[must_use]
    pub fn error(status: u16, message: &str) -> Self {
        let body = serde_json::to_string(&ApiError {
            error: message.to_owned(),
        });
        Self {
            status,
            body: body.unwrap_or_default(),
            kind: JSON,
        }
    }
}

/// Method and path of what takes no body.
const PLAIN: [(&str, &str, Command); 12] = [
    ("DELETE", "/v1/snapshot", Command::CancelSnapshot),
    ("GET", "/v1/balloon", Command::Balloon),
    ("GET", "/v1/machine", Command::Describe),
    ("GET", "/v1/metrics", Command::Metrics),
    ("GET", "/v1/prometheus", Command::Prometheus),
    ("PUT", "/v1/power-button", Command::PowerButton),
    ("PUT", "/v1/nmi", Command::Nmi),
    ("PUT", "/v1/reset", Command::Reset),
    ("PUT", "/v1/stop", Command::Stop),
    ("PUT", "/v1/hand-over", Command::HandOver),
    ("PUT", "/v1/pause", Command::Pause),
    ("PUT", "/v1/resume", Command::Resume),
];

/// Finds the command.
///
/// # Errors
/// The answer to give instead: 404, 405, or 400 for a body that is wrong.
pub fn route(request: &Request) -> Result<Command, Answer> {
    let method = request.method.as_str();
    let takes = |wanted: &str| match method == wanted {
        true => Ok(()),
        false => Err(Answer::error(
            405,
            &format!("{} takes {wanted}", request.path),
        )),
    };
    match request.path.as_str() {
        "/v1/disks" => {
            takes("POST")?;
            return body(request).map(Command::AddDisk);
        }
        "/v1/nics" => {
            takes("POST")?;
            return body(request).map(Command::AddNic);
        }
        "/v1/reboot" => {
            takes("PUT")?;
            return body(request).map(Command::Reboot);
        }
        "/v1/snapshot" if method != "DELETE" => {
            takes("PUT")?;
            return body(request).map(Command::Snapshot);
        }
        "/v1/balloon" if method != "GET" => {
            takes("PUT")?;
            return body(request).map(Command::SetBalloon);
        }
        _ => {}
    }
    if method == "PATCH" {
        if request.path == "/v1/machine" {
            return body(request).map(Command::ChangeMachine);
        }
        if let Some(id) = request.path.strip_prefix("/v1/disks/") {
            let some = !request.body.is_empty();
            let change = some.then(|| body(request)).transpose()?;
            return Ok(Command::ChangeDisk(id.to_owned(), change));
        }
        if let Some(id) = request.path.strip_prefix("/v1/nics/") {
            return body(request).map(|change| Command::ChangeNic(id.to_owned(), change));
        }
    }
    if !request.body.is_empty() {
        return Err(Answer::error(
            400,
            &format!("{} takes no body", request.path),
        ));
    }
    if let Some(id) = request.path.strip_prefix("/v1/disks/") {
        takes("DELETE")?;
        return Ok(Command::RemoveDisk(id.to_owned()));
    }
    if let Some(id) = request.path.strip_prefix("/v1/nics/") {
        takes("DELETE")?;
        return Ok(Command::RemoveNic(id.to_owned()));
    }
    let (wanted, _, command) = PLAIN
        .iter()
        .find(|(_, path, _)| *path == request.path)
        .ok_or_else(|| Answer::error(404, &format!("no such path: {}", request.path)))?;
    takes(wanted)?;
    Ok(command.clone())
}

fn body<T: DeserializeOwned>(request: &Request) -> Result<T, Answer> {
    serde_json::from_slice(&request.body).map_err(|error| Answer::error(400, &error.to_string()))
}

#[cfg(test)]
mod tests {
    use hearth_vmm_api::Limits;

    use super::*;

    fn request(method: &str, path: &str, body: &str) -> Request {
        Request {
            method: method.into(),
            path: path.into(),
            body: body.into(),
        }
    }

    #[test]
    fn devices_are_named_in_body_and_path() {
        let add = request("POST", "/v1/disks", r#"{"id":"data","path":"/x"}"#);
        assert!(matches!(route(&add), Ok(Command::AddDisk(disk)) if disk.id == "data"));
        let remove = request("DELETE", "/v1/nics/eth1", "");
        assert_eq!(route(&remove), Ok(Command::RemoveNic("eth1".into())));
    }

    #[test]
    fn a_change_says_all_limits_and_a_disk_needs_none() {
        let limits = Limits {
            ops: Some(100),
            ..Limits::default()
        };
        let limit = |path, body| route(&request("PATCH", path, body));
        let body = r#"{"limits":{"ops":100}}"#;
        let change = Change { limits };
        let disk = |change| Ok(Command::ChangeDisk("a".into(), change));
        assert_eq!(limit("/v1/disks/a", body), disk(Some(change)));
        assert_eq!(limit("/v1/disks/a", ""), disk(None));
        let nic = Command::ChangeNic("a".into(), change);
        assert_eq!(limit("/v1/nics/a", body), Ok(nic));
        for wrong in [
            "",
            "{}",
            r#"{"limits":{"ops":-1}}"#,
            r#"{"limits":{"op":1}}"#,
        ] {
            assert_eq!(limit("/v1/nics/a", wrong).expect_err("refused").status, 400);
        }
    }

    #[test]
    fn a_machine_is_changed_by_what_is_named() {
        let change = |body| route(&request("PATCH", "/v1/machine", body));
        let changed = |vcpus, memory_bytes| {
            Ok(Command::ChangeMachine(MachineChange {
                vcpus,
                memory_bytes,
            }))
        };
        assert_eq!(change(r#"{"vcpus":4}"#), changed(Some(4), None));
        assert_eq!(change(r#"{"memory_bytes":7}"#), changed(None, Some(7)));
        assert_eq!(change("{}"), changed(None, None));
        for wrong in ["", r#"{"vcpus":-1}"#, r#"{"vcpus":256}"#, r#"{"cpus":1}"#] {
            assert_eq!(change(wrong).expect_err("refused").status, 400);
        }
    }

    #[test]
    fn a_reboot_says_which() {
        let reboot = request("PUT", "/v1/reboot", r#"{"resets":3}"#);
        assert_eq!(route(&reboot), Ok(Command::Reboot(Reboot { resets: 3 })));
    }

    #[test]
    fn a_snapshot_says_where_and_since_when() {
        let first = request("PUT", "/v1/snapshot", r#"{"path":"/a","follow":true}"#);
        let second = request("PUT", "/v1/snapshot", r#"{"path":"/b","base":"/a"}"#);
        let new = |path: &str, base: Option<&str>| NewSnapshot {
            path: path.into(),
            base: base.map(Into::into),
            follow: base.is_none(),
        };
        assert_eq!(route(&first), Ok(Command::Snapshot(new("/a", None))));
        assert_eq!(route(&second), Ok(Command::Snapshot(new("/b", Some("/a")))));
        let given_up = route(&request("DELETE", "/v1/snapshot", ""));
        assert_eq!(given_up, Ok(Command::CancelSnapshot));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let unknown = r#"{"id":"data","path":"/x","cache":"none"}"#;
        for (request, status) in [
            (request("POST", "/v1/disks", unknown), 400),
            (request("POST", "/v1/disks", ""), 400),
            (request("GET", "/v1/disks", ""), 405),
            (request("PUT", "/v1/reboot", ""), 400),
            (request("PUT", "/v1/snapshot", r#"{"folder":"/a"}"#), 400),
            (request("GET", "/v1/snapshot", ""), 405),
            (request("POST", "/v1/reboot", r#"{"resets":0}"#), 405),
            (request("PUT", "/v1/pause", "{}"), 400),
            (request("GET", "/v2/machine", ""), 404),
        ] {
            assert_eq!(route(&request).expect_err("refused").status, status);
        }
    }
}
