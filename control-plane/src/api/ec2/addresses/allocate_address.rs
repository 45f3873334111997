//! `AllocateAddress`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_AllocateAddress.html>

use serde::{Deserialize, Serialize};

use super::{MAX_ADDRESSES, POOL};
use crate::{
    api::{
        Action, ApiError, Ctx, Targets,
        shared::{TagSpecification, quota, tag},
        wire::quoted,
    },
    model::{AddressHolder, AllocationId, ElasticIp},
    records::launch::free_public,
};

/// The action.
pub(crate) struct AllocateAddress;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    domain: Option<String>,
    public_ipv4_pool: Option<String>,
    network_border_group: Option<String>,
    #[serde(default, rename = "TagSpecification")]
    tag_specifications: Vec<TagSpecification>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    allocation_id: String,
    public_ip: String,
    public_ipv4_pool: String,
    network_border_group: String,
    domain: String,
}

impl Action for AllocateAddress {
    const NAME: &'static str = "AllocateAddress";
    /// An address of the caller's choice is one that it has had before, or one of a pool
    /// of its own.
    const UNSUPPORTED: &'static [&'static str] =
        &["Address", "CustomerOwnedIpv4Pool", "IpamPoolId"];
    type Request = Request;
    type Response = Response;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        to.made::<ElasticIp>([], &request.tag_specifications);
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        if let Some(domain) = request.domain.filter(|domain| domain != "vpc") {
            return Err(ApiError::invalid_value(
                "domain",
                &domain,
                "It must be vpc.",
            ));
        }
        if let Some(pool) = request.public_ipv4_pool.filter(|pool| pool != POOL) {
            let message = format!("The pool ID '{}' does not exist.", quoted(&pool));
            return Err(ApiError::new("InvalidPublicIpv4PoolID.NotFound", message));
        }
        let region = &ctx.scope().region;
        if let Some(group) = request.network_border_group.filter(|group| group != region) {
            let why = format!("It must be {region}.");
            return Err(ApiError::invalid_value("networkBorderGroup", &group, &why));
        }
        let tags = tag::specified_for(&request.tag_specifications, "elastic-ip")?;
        let id = ctx.fresh_id(AllocationId::from_random);
        let pool = ctx.config.public_addresses();
        let made = ctx
            .transact(|view, change| {
                quota::one_more::<ElasticIp>(view, change, MAX_ADDRESSES, || {
                    ApiError::new(
                        "AddressLimitExceeded",
                        "The maximum number of addresses has been reached.",
                    )
                })?;
                let holder = AddressHolder::Allocation(id.clone());
                let taken = free_public(view, change, holder, pool, None);
                let (address, record) = taken.ok_or_else(|| {
                    ApiError::new(
                        "InsufficientAddressCapacity",
                        "There are no free addresses in the pool of public addresses.",
                    )
                })?;
                let elastic = ElasticIp {
                    id: id.clone(),
                    scope: view.scope().clone(),
                    address,
                    allocated: ctx.now(),
                    association: None,
                };
                change.create(&record);
                change.create(&elastic);
                if !tags.is_empty() {
                    change.put_tags(&elastic, tags.clone());
                }
                Ok::<_, ApiError>(elastic)
            })
            .await?;
        Ok(Response {
            allocation_id: made.id.to_string(),
            public_ip: made.address.to_string(),
            public_ipv4_pool: POOL.into(),
            network_border_group: made.scope.region,
            domain: "vpc".into(),
        })
    }
}
