//! Tags, of every kind of resource.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html>

mod create_tags;
mod delete_tags;
mod describe_tags;

pub(super) use create_tags::CreateTags;
pub(super) use delete_tags::DeleteTags;
pub(super) use describe_tags::DescribeTags;

use std::collections::BTreeMap;

use crate::api::shared::{found, not_found, parse_id};
use crate::{
    api::{ApiError, Targets, wire::quoted},
    model::{self, Described, IdForm, Identifier as _, Part, RuleId, each_kind},
    store::{Change, Scoped},
};

/// The most resources in one call.
const MAX_RESOURCES: usize = 1000;

type Set = BTreeMap<String, String>;

/// Makes a resource's new tags of those that it has.
type Alter<'a> = &'a dyn Fn(&Set) -> Result<Set, ApiError>;

/// What the tags of a kind of resource need to know of it.
struct Kind {
    /// The service that it is of: others than EC2 tag their own.
    service: &'static str,
    /// What its ids look like.
    form: IdForm,
    /// What EC2 calls it.
    name: &'static str,
    /// Gives one other tags, if it is there, and makes the transaction depend on that.
    retag: fn(Scoped<'_>, &mut Change<'_>, &str, Alter<'_>) -> Result<(), ApiError>,
    /// Resolves one for the authorization.
    target: fn(&mut Targets<'_>, &str),
}

impl Kind {
    const fn own<T: Described>() -> Self {
        Self {
            service: T::SERVICE,
            form: T::Id::FORM,
            name: T::TYPE,
            retag: |view, change, id, alter| {
                let resource = found::<T>(view, id)?;
                change.expect_unchanged(resource);
                change.put_tags(resource, alter(view.tags(id))?);
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
                service: model::SecurityGroup::SERVICE,
                form: RuleId::FORM,
                name: RuleId::TYPE,
                retag: retag_part::<RuleId>,
                target: |to, id| to.part::<RuleId>(id),
            },
        ];
    };
}

each_kind!(tagged);

/// A part is there while its whole has it.
fn retag_part<P: Part>(
    view: Scoped<'_>,
    change: &mut Change<'_>,
    id: &str,
    alter: Alter<'_>,
) -> Result<(), ApiError> {
    let part: P = parse_id(id)?;
    let whole = view.by(P::INDEX, id).next();
    change.expect_unchanged(whole.ok_or_else(|| not_found::<P>(id))?);
    change.put_part_tags(view.scope(), &part, alter(view.tags(id))?);
    Ok(())
}

/// The kind that an identifier is of.
fn kind_of(id: &str) -> Option<&'static Kind> {
    let (prefix, _) = id.rsplit_once('-')?;
    let mut ours = KINDS.iter().filter(|kind| kind.service == "ec2");
    ours.find(|kind| matches!(kind.form, IdForm::Digits(own) if own == prefix))
}

/// Resolves a resource of a call for the authorization; what is of no kind is of none
/// that any policy names.
fn target(to: &mut Targets<'_>, id: &str) {
    match kind_of(id) {
        Some(kind) => (kind.target)(to, id),
        None => to.unknown(id),
    }
}

/// EC2's name of the kind that an identifier is of.
fn kind(id: &str) -> Option<&'static str> {
    Some(kind_of(id)?.name)
}

/// Gives a resource other tags, if it is there, and makes the transaction depend on
/// that.
fn retag(
    view: Scoped<'_>,
    change: &mut Change<'_>,
    id: &str,
    alter: Alter<'_>,
) -> Result<(), ApiError> {
    match kind_of(id) {
        Some(kind) => (kind.retag)(view, change, id, alter),
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
