//! Access to serial consoles: there is none yet, so it is disabled, and nobody can enable
//! it. (`GetConsoleOutput` and `GetConsoleScreenshot` read; this is about typing.)
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configure-access-to-serial-console.html>

use serde::{Deserialize, Serialize};

use crate::api::{Action, ApiError, Ctx, Targets};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    serial_console_access_enabled: bool,
}

/// `DisableSerialConsoleAccess`.
pub(crate) struct DisableSerialConsoleAccess;

impl Action for DisableSerialConsoleAccess {
    const NAME: &'static str = "DisableSerialConsoleAccess";
    type Request = Request;
    type Response = Response;

    fn targets(_: &Request, to: &mut Targets<'_>) {
        to.any();
    }

    async fn handle(_: &Ctx, _: Request) -> Result<Response, ApiError> {
        Ok(Response {
            serial_console_access_enabled: false,
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Access {
    serial_console_access_enabled: bool,
    managed_by: String,
}

/// `GetSerialConsoleAccessStatus`.
pub(crate) struct GetSerialConsoleAccessStatus;

impl Action for GetSerialConsoleAccessStatus {
    const NAME: &'static str = "GetSerialConsoleAccessStatus";
    type Request = Request;
    type Response = Access;

    fn targets(_: &Request, to: &mut Targets<'_>) {
        to.any();
    }

    async fn handle(_: &Ctx, _: Request) -> Result<Access, ApiError> {
        Ok(Access {
            serial_console_access_enabled: false,
            managed_by: "account".into(),
        })
    }
}
