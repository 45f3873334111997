//! `DescribeLaunchTemplates`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeLaunchTemplates.html>

use super::{answer::Template, named};
use crate::{
    api::{
        ApiError,
        ec2::listing::{Filtered, Row, Table, describe},
        wire::Time,
    },
    model::LaunchTemplate,
};

describe! {
    DescribeLaunchTemplates {
        ids: "LaunchTemplateId",
        set: launch_templates of Template,
        unsupported: ["IncludeManagedResources"],
        more: {
            #[serde(default, rename = "LaunchTemplateName")]
            names: Vec<String>,
        },
        pages: 1..=200,
        page: |asked, more| {
            let mut asked = asked;
            for name in &more.names {
                let template = named(asked.view, name).ok_or_else(|| {
                    ApiError::new(
                        "InvalidLaunchTemplateName.NotFoundException",
                        "At least one of the launch templates specified in the request does not exist.",
                    )
                })?;
                asked.ids.push(template.id.to_string());
            }
            let (rows, next_token) = asked.rows(|template: &LaunchTemplate| !template.deleting)?;
            let item = |row: &Row<'_, LaunchTemplate>| Template::new(row.resource, row.tags());
            Ok((rows.iter().map(item).collect(), next_token))
        },
    }
}

impl Filtered for LaunchTemplate {
    fn filters<'v>() -> Table<Row<'v, Self>> {
        Table::<Row<'v, Self>>::new()
            .on("create-time", |t, out| out.add(Time(t.created)))
            .on("launch-template-name", |t, out| out.add(&t.name))
    }
}
