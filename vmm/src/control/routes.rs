//! Which request is which command: the table in `hearth_vmm_api`'s documentation.

use hearth_vmm_api::ApiError;
use serde::Serialize;

use super::http::Request;

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// The machine's description.
    Describe,
    /// The counters.
    Metrics,
    /// The power button pressed.
    PowerButton,
    /// The machine power-cycled.
    Reset,
    /// The process ended.
    Stop,
    /// The vCPUs held.
    Pause,
    /// The vCPUs let go.
    Resume,
}

/// What a client gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// JSON, or nothing.
    pub body: String,
}

impl Answer {
    /// 204: it was done.
    #[must_use]
    pub fn done() -> Self {
        Self {
            status: 204,
            body: String::new(),
        }
    }

    /// 200 with a value.
    #[must_use]
    pub fn value(value: &impl Serialize) -> Self {
        match serde_json::to_string(value) {
            Ok(body) => Self { status: 200, body },
            Err(error) => Self::error(500, &error.to_string()),
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
        }
    }
}

/// Method, path, command.
const TABLE: [(&str, &str, Command); 7] = [
    ("GET", "/v1/machine", Command::Describe),
    ("GET", "/v1/metrics", Command::Metrics),
    ("PUT", "/v1/power-button", Command::PowerButton),
    ("PUT", "/v1/reset", Command::Reset),
    ("PUT", "/v1/stop", Command::Stop),
    ("PUT", "/v1/pause", Command::Pause),
    ("PUT", "/v1/resume", Command::Resume),
];

/// Finds the command.
///
/// # Errors
/// The answer to give instead: 404, 405, or 400 for a body where none belongs.
pub fn route(request: &Request) -> Result<Command, Answer> {
    let Some((method, _, command)) = TABLE.iter().find(|(_, path, _)| *path == request.path) else {
        return Err(Answer::error(
            404,
            &format!("no such path: {}", request.path),
        ));
    };
    if *method != request.method {
        return Err(Answer::error(
            405,
            &format!("{} takes {method}", request.path),
        ));
    }
    if !request.body.is_empty() {
        return Err(Answer::error(
            400,
            &format!("{} takes no body", request.path),
        ));
    }
    Ok(*command)
}
