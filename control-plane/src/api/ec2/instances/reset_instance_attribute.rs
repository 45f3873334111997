//! `ResetInstanceAttribute`: one attribute back to what it is by default.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_ResetInstanceAttribute.html>

use serde::Deserialize;

use super::{
    attributes::{Attribute, Set, doing},
    interfaces_along,
};
use crate::{
    api::{Action, ApiError, Ctx, Done, Targets, shared::found},
    model::Instance,
};

/// The action.
pub struct ResetInstanceAttribute;

/// Its parameters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Request {
    /// The instance.
    pub instance_id: String,
    /// The attribute's name.
    pub attribute: String,
}

impl Action for ResetInstanceAttribute {
    const NAME: &'static str = "ResetInstanceAttribute";
    type Request = Request;
    type Response = Done;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        to.named::<Instance>([&request.instance_id]);
        interfaces_along(to, [&request.instance_id]);
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Done, ApiError> {
        ctx.transact(|view, change| {
            let instance = found::<Instance>(view, &request.instance_id)?;
            let attribute = Attribute::named(&request.attribute)?;
            let mut doing = doing(view, change, instance)?;
            match (attribute.reset, attribute.set) {
                (Some(value), _) => attribute.set(&mut doing, value),
                // A kernel or RAM disk, which EC2 does reset.
                (None, Set::Always("")) => {
                    let what = format!("A reset of the attribute {}", attribute.name);
                    Err(ApiError::unsupported(&what))
                }
                (None, _) => Err(attribute.cannot_be("reset")),
            }
        })
        .await?;
        Ok(Done::OK)
    }
}
