//! `DescribeAccountAttributes`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeAccountAttributes.html>

use serde::{Deserialize, Serialize};

use crate::{
    api::{
        Action, ApiError, Ctx, Targets,
        ec2::{addresses::MAX_ADDRESSES, instances::groups},
    },
    model::Vpc,
    store::Scoped,
};

/// The action.
pub(crate) struct DescribeAccountAttributes;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    #[serde(default, rename = "AttributeName")]
    names: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    account_attribute_set: Vec<Attribute>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Attribute {
    attribute_name: String,
    attribute_value_set: Vec<Value>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Value {
    attribute_value: String,
}

/// EC2's own number for every account. It says itself that nothing follows from it any
/// more.
const MAX_INSTANCES: &str = "20";

/// What the account has of an attribute.
type Read = fn(Scoped<'_>) -> String;

/// Each attribute, with what an account has of it.
const ATTRIBUTES: [(&str, Read); 6] = [
    ("supported-platforms", |_| "VPC".to_owned()),
    ("default-vpc", |view| {
        let vpc = view.all::<Vpc>().find(|vpc| vpc.is_default);
        vpc.map_or_else(|| "none".to_owned(), |vpc| vpc.id.to_string())
    }),
    ("max-instances", |_| MAX_INSTANCES.to_owned()),
    ("max-elastic-ips", |_| MAX_ADDRESSES.to_string()),
    ("vpc-max-elastic-ips", |_| MAX_ADDRESSES.to_string()),
    ("vpc-max-security-groups-per-interface", |_| {
        groups::MAX.to_string()
    }),
];

impl Action for DescribeAccountAttributes {
    const NAME: &'static str = "DescribeAccountAttributes";
    type Request = Request;
    type Response = Response;

    fn targets(_: &Request, to: &mut Targets<'_>) {
        to.any();
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let known = |name: &&String| ATTRIBUTES.iter().any(|(known, _)| known == name);
        if let Some(unknown) = request.names.iter().find(|name| !known(name)) {
            let why = "It is no attribute of an account.";
            return Err(ApiError::invalid_value("attributeName", unknown, why));
        }
        let view = ctx.view();
        let wanted =
            |name: &str| request.names.is_empty() || request.names.iter().any(|n| n == name);
        let wanted = ATTRIBUTES.iter().filter(|(name, _)| wanted(name));
        let shown = wanted.map(|(name, read)| Attribute {
            attribute_name: (*name).to_owned(),
            attribute_value_set: vec![Value {
                attribute_value: read(view.view()),
            }],
        });
        Ok(Response {
            account_attribute_set: shown.collect(),
        })
    }
}
