//! `DeleteVolume`. The record goes when the volume itself is gone: the
//! reconciler of the host sees to that.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DeleteVolume.html>

use serde::Deserialize;

use crate::{
    api::{
        Action, ApiError, Ctx, Done, Targets,
        shared::{found, unreferred},
    },
    model::Volume,
};

/// The action.
pub(crate) struct DeleteVolume;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    volume_id: String,
}

impl Action for DeleteVolume {
    const NAME: &'static str = "DeleteVolume";
    type Request = Request;
    type Response = Done;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        to.named::<Volume>([&request.volume_id]);
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Done, ApiError> {
        ctx.transact(|view, change| {
            let volume = found::<Volume>(view, &request.volume_id)?;
            if let Some(attachment) = &volume.attachment {
                let message = format!(
                    "Volume {} is currently attached to {}",
                    volume.id, attachment.instance
                );
                return Err(ApiError::new("VolumeInUse", message));
            }
            unreferred(view, volume)?;
            if !volume.deleting {
                change.update(
                    volume,
                    &Volume {
                        deleting: true,
                        ..volume.clone()
                    },
                );
            }
            Ok(())
        })
        .await?;
        Ok(Done::OK)
    }
}
