//! Tags, of every kind of resource.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html>

mod create_tags;
mod delete_tags;
mod describe_tags;

pub(super) use create_tags::CreateTags;
pub(super) use delete_tags::DeleteTags;
pub(super) use describe_tags::DescribeTags;

use crate::api::shared::{found, not_found, parse_id};
use crate::{
    api::{ApiError, Targets, wire::quoted},
    model::{self, Described, Identifier as _, RuleId, SecurityGroup, each_kind},
    store::{Change, Scoped},
};

/// The most resources in one call.
const MAX_RESOURCES: usize = 1000;

/// What the tags of a kind of resource need to know of it.
struct Kind {
    /// The prefix of its ids.
    prefix: &'static str,
    /// What EC2 calls it.
    name: &'static str,
    /// Checks that one is there, and makes the transaction depend on that.
    expect: fn(Scoped<'_>, &mut Change<'_>, &str) -> Result<(), ApiError>,
    /// Resolves one for the authorization.
    target: fn(&mut Targets<'_>, &str),
}

impl Kind {
    const fn own<T: Described>() -> Self {
        Self {
            prefix: T::Id::PREFIX,
            name: T::TYPE,
            expect: |view, change, id| {
                change.expect_unchanged(found::<T>(view, id)?);
                Ok(())
            },
            target: |to, id| to.named::<T>([id]),
        }
    }
}

macro_rules! tagged {
    (described: [$($resource:ident),* $(,)?], others: [$($other:ident),* $(,)?] $(,)?) => {
        /// Every kind that can have tags.
        const KINDS: &[Kind] = &[
            $(Kind::own::<model::$resource>(),)*
            Kind {
                prefix: RuleId::PREFIX,
                name: "security-group-rule",
                expect: expect_rule,
                target: |to, id| to.part("security-group-rule", id),
            },
        ];
    };
}

each_kind!(tagged);

/// A rule is a part of its group.
fn expect_rule(view: Scoped<'_>, change: &mut Change<'_>, id: &str) -> Result<(), ApiError> {
    let id: RuleId = parse_id(id)?;
    let group = view.by(SecurityGroup::BY_RULE, id.as_str()).next();
    change.expect_unchanged(group.ok_or_else(|| not_found::<RuleId>(&id))?);
    Ok(())
}

/// The kind that an identifier is of.
fn kind_of(id: &str) -> Option<&'static Kind> {
    let (prefix, _) = id.rsplit_once('-')?;
    KINDS.iter().find(|kind| kind.prefix == prefix)
}

/// Resolves a resource of a call for the authorization; what is of no kind is of none
/// that any policy names.
fn target(to: &mut Targets<'_>, id: &str) {
    match kind_of(id) {
        Some(kind) => (kind.target)(to, id),
        None => to.part("unknown", id),
    }
}

/// EC2's name of the kind that an identifier is of.
fn kind(id: &str) -> Option<&'static str> {
    Some(kind_of(id)?.name)
}

/// Checks that a resource is there, and makes the transaction depend on that.
fn exists(view: Scoped<'_>, change: &mut Change<'_>, id: &str) -> Result<(), ApiError> {
    match kind_of(id) {
        Some(kind) => (kind.expect)(view, change, id),
        None => Err(ApiError::new(
            "InvalidID",
            format!("The ID '{}' is not valid", quoted(id)),
        )),
    }
}

/// Checks the list of resources of a call.
fn check_resources(resources: &[String]) -> Result<(), ApiError> {
    if resources.is_empty() {
        return Err(ApiError::missing("ResourceId"));
    }
    if resources.len() > MAX_RESOURCES {
        return Err(ApiError::new(
            "InvalidParameterValue",
            format!("A request has at most {MAX_RESOURCES} resources"),
        ));
    }
    Ok(())
}
