//! `ImportKeyPair`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_ImportKeyPair.html>

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use super::{check_name, keep, material};
use crate::{
    api::{
        Action, ApiError, Ctx, Targets,
        shared::{Tag, TagSpecification, tag},
    },
    model::KeyPair,
};

/// The action.
pub(crate) struct ImportKeyPair;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    key_name: String,
    /// Base64.
    public_key_material: String,
    #[serde(default, rename = "TagSpecification")]
    tag_specifications: Vec<TagSpecification>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    key_name: String,
    key_fingerprint: String,
    key_pair_id: String,
    tag_set: Option<Vec<Tag>>,
}

impl Action for ImportKeyPair {
    const NAME: &'static str = "ImportKeyPair";
    type Request = Request;
    type Response = Response;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        to.made::<KeyPair>([], &request.tag_specifications);
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        check_name(&request.key_name)?;
        let tags = tag::specified_for(&request.tag_specifications, "key-pair")?;
        let bad = |why: String| ApiError::new("InvalidKey.Format", why);
        let text = STANDARD
            .decode(request.public_key_material.trim())
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or_else(|| bad("PublicKeyMaterial is not text in base64".into()))?;
        let public = material::import(&text, &request.key_name).map_err(bad)?;
        let pair = keep(ctx, request.key_name, public, tags.clone()).await?;
        Ok(Response {
            key_name: pair.name,
            key_fingerprint: pair.fingerprint,
            key_pair_id: pair.id.to_string(),
            tag_set: Tag::set(&tags),
        })
    }
}
