//! Values of parameters that several of these actions read.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{
    api::ApiError,
    model::{InstanceType, ShutdownBehavior},
};

/// The longest user data, decoded, in bytes.
const MAX_USER_DATA: usize = 16 * 1024;

/// The instance type of this name.
pub(super) fn type_named(name: &str) -> Result<&'static InstanceType, ApiError> {
    InstanceType::find(name).ok_or_else(|| {
        let why = "It is no instance type of this cloud.";
        ApiError::invalid_value("InstanceType", name, why)
    })
}

/// User data as it came, base64: an empty one is none.
pub(in crate::api::ec2) fn user_data(given: Option<&str>) -> Result<Option<String>, ApiError> {
    let Some(text) = given else {
        return Ok(None);
    };
    let invalid = |message: &str| ApiError::new("InvalidParameterValue", message);
    let bytes = STANDARD
        .decode(text)
        .map_err(|_| invalid("Invalid BASE64 encoding of user data."))?;
    if bytes.len() > MAX_USER_DATA {
        return Err(invalid("User data is limited to 16384 bytes"));
    }
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

/// What the guest's own power-off leads to, by EC2's name.
pub(super) fn shutdown_behavior(name: &str) -> Result<ShutdownBehavior, ApiError> {
    ShutdownBehavior::ALL
        .into_iter()
        .find(|behavior| behavior.name() == name)
        .ok_or_else(|| {
            let why = "It must be stop or terminate.";
            ApiError::invalid_value("instanceInitiatedShutdownBehavior", name, why)
        })
}

/// `true` or `false`, where it comes as text.
pub(super) fn flag(value: &str) -> Result<bool, ApiError> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(ApiError::invalid_value(
            "Value",
            value,
            "It must be true or false.",
        )),
    }
}
