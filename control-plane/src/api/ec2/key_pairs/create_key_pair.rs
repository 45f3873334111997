//! `CreateKeyPair`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateKeyPair.html>

use serde::{Deserialize, Serialize};

use super::{
    check_name, duplicate, keep,
    material::{self, Format, Kind},
};
use crate::{
    api::{
        Action, ApiError, Ctx, Targets,
        shared::{Tag, TagSpecification, tag},
    },
    model::{KeyPair, condition_key::ec2},
};

/// The action.
pub(crate) struct CreateKeyPair;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    key_name: String,
    key_type: Option<String>,
    key_format: Option<String>,
    #[serde(default, rename = "TagSpecification")]
    tag_specifications: Vec<TagSpecification>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    key_name: String,
    key_fingerprint: String,
    /// The private key: here and never again.
    key_material: String,
    key_pair_id: String,
    tag_set: Option<Vec<Tag>>,
}

impl Action for CreateKeyPair {
    const NAME: &'static str = "CreateKeyPair";
    type Request = Request;
    type Response = Response;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        let kind = request.key_type.clone().unwrap_or_else(|| "rsa".into());
        to.made::<KeyPair>([(ec2::KEY_PAIR_TYPE, kind)], &request.tag_specifications);
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        check_name(&request.key_name)?;
        let kind = match request.key_type.as_deref() {
            None | Some("rsa") => Kind::Rsa,
            Some("ed25519") => Kind::Ed25519,
            Some(other) => {
                let why = "It must be rsa or ed25519.";
                return Err(ApiError::invalid_value("KeyType", other, why));
            }
        };
        let format = match request.key_format.as_deref() {
            None | Some("pem") => Format::Pem,
            Some("ppk") => Format::Ppk,
            Some(other) => {
                let why = "It must be pem or ppk.";
                return Err(ApiError::invalid_value("KeyFormat", other, why));
            }
        };
        let tags = tag::specified_for(&request.tag_specifications, "key-pair")?;
        // Before the work of making a key; the transaction looks again.
        if ctx
            .view()
            .view()
            .get::<KeyPair>(&request.key_name)
            .is_some()
        {
            return Err(duplicate(&request.key_name));
        }
        let (public, private) = material::generate(kind, format, &request.key_name).await?;
        let pair = keep(ctx, request.key_name, public, tags.clone()).await?;
        Ok(Response {
            key_name: pair.name,
            key_fingerprint: pair.fingerprint,
            key_material: private,
            key_pair_id: pair.id.to_string(),
            tag_set: Tag::set(&tags),
        })
    }
}
