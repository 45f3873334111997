//! Identifiers in requests, and the resources that they name: each kind has its own
//! pair of error codes, which its declaration has.

use crate::{
    api::{ApiError, wire::quoted},
    model::{Described, IdForm, Identifier, Visible},
    store::Scoped,
};

/// Reads an identifier.
///
/// # Errors
/// The kind's `Malformed` code.
pub fn parse_id<I: Identifier>(text: &str) -> Result<I, ApiError> {
    text.parse().map_err(|_| {
        let shown = quoted(text);
        let message = match I::FORM {
            IdForm::Digits(prefix) => {
                let rest = text.strip_prefix(prefix);
                if rest.is_some_and(|rest| rest.starts_with('-')) {
                    format!("Invalid id: \"{shown}\"")
                } else {
                    format!("Invalid id: \"{shown}\" (expecting \"{prefix}-...\")")
                }
            }
            form => format!("\"{shown}\" is not valid: it must be {form}"),
        };
        ApiError::new(I::MALFORMED, message)
    })
}

/// The error for an identifier that names nothing.
pub fn not_found<I: Identifier>(id: impl AsRef<str>) -> ApiError {
    none_found::<I>(&[id.as_ref()])
}

/// The error for identifiers, one or more, that name nothing, in their service's words.
fn none_found<I: Identifier>(ids: &[&str]) -> ApiError {
    let shown: Vec<_> = ids.iter().map(|id| quoted(id)).collect();
    let [one, many] = I::ABSENT;
    let words = if ids.len() == 1 { one } else { many };
    ApiError::new(I::NOT_FOUND, words.replace("{ids}", &shown.join(", ")))
}

/// The caller's resources that identifiers of a request name, in their order.
///
/// # Errors
/// The kind's `Malformed` for the first that is none, or else its `NotFound` for
/// all that name nothing.
pub fn all_found<'v, T: Described>(
    view: Scoped<'v>,
    ids: &[String],
) -> Result<Vec<&'v T>, ApiError> {
    all_found_by(ids, |id: &T::Id| view.find::<T>(id))
}

/// The same of what `find` finds.
///
/// # Errors
/// As there.
pub fn all_found_by<I: Identifier, R>(
    ids: &[String],
    find: impl Fn(&I) -> Option<R>,
) -> Result<Vec<R>, ApiError> {
    let parsed = ids.iter().map(|id| parse_id::<I>(id));
    let parsed = parsed.collect::<Result<Vec<_>, _>>()?;
    let mut unknown: Vec<&str> = Vec::new();
    let mut all = Vec::new();
    for id in &parsed {
        match find(id) {
            Some(resource) => all.push(resource),
            None if !unknown.contains(&id.as_ref()) => unknown.push(id.as_ref()),
            None => {}
        }
    }
    if unknown.is_empty() {
        Ok(all)
    } else {
        Err(none_found::<I>(&unknown))
    }
}

/// The caller's resource that an identifier of a request names.
///
/// # Errors
/// The kind's `Malformed` or `NotFound`.
pub fn found<'v, T: Described>(view: Scoped<'v>, id: &str) -> Result<&'v T, ApiError> {
    let id = parse_id::<T::Id>(id)?;
    view.find::<T>(&id).ok_or_else(|| not_found::<T::Id>(&id))
}

/// The same for a resource that may be another account's.
///
/// # Errors
/// As there.
pub fn found_visible<'v, T: Visible>(view: Scoped<'v>, id: &str) -> Result<&'v T, ApiError> {
    let id = parse_id::<T::Id>(id)?;
    view.visible::<T>(&id)
        .ok_or_else(|| not_found::<T::Id>(&id))
}

/// The error for a resource that something refers to, in EC2's words.
pub fn in_use<T: Described>(id: &T::Id) -> ApiError {
    let message = T::IN_USE.replace("{id}", id.as_ref());
    ApiError::new("DependencyViolation", message)
}

/// What each deletion asks first: whether something refers to the resource, as the
/// records that do declare with `refers:`. In a transaction that deletes it, this is
/// enough only where what begins to refer to it says so with [`Change::refer_to`](crate::store::Change::refer_to); else it
/// is marked before, as a security group is.
///
/// # Errors
/// [`in_use`].
pub fn unreferred<T: Described>(view: Scoped<'_>, resource: &T) -> Result<(), ApiError> {
    match view.is_referred_to(resource) {
        true => Err(in_use::<T>(resource.described_id())),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{
            ImageId, InstanceId, KeyPairId,
            samples::{self, LoadBalancer, LoadBalancerArn, Role, RoleName},
        },
        store::View,
    };

    fn told(error: &ApiError) -> (&str, &str) {
        (&error.code, &error.message)
    }

    #[test]
    fn each_form_has_words_for_what_is_none_of_it() {
        let words = |error: ApiError| error.to_string();
        for (error, expected) in [
            (
                words(parse_id::<InstanceId>("i-1").unwrap_err()),
                "InvalidInstanceID.Malformed: Invalid id: \"i-1\"",
            ),
            (
                words(parse_id::<KeyPairId>("i-1").unwrap_err()),
                "InvalidParameterValue: Invalid id: \"i-1\" (expecting \"key-...\")",
            ),
            (
                words(parse_id::<RoleName>("a b").unwrap_err()),
                "ValidationError: \"a b\" is not valid: it must be 1 to 64 letters, digits \
                 and characters of _+=,.@-",
            ),
            (
                words(parse_id::<LoadBalancerArn>("web").unwrap_err()),
                "ValidationError: \"web\" is not valid: it must be \
                 arn:aws:elasticloadbalancing:region:account:loadbalancer/…",
            ),
        ] {
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn each_kind_has_words_for_what_is_not_there() {
        let (view, scope) = (View::default(), samples::scope());
        let view = view.at(&scope);
        let error = found::<Role>(view, "web").unwrap_err();
        let words = "The role with name web cannot be found.";
        assert_eq!(told(&error), ("NoSuchEntity", words));
        let arn = LoadBalancer::arn_at(&scope, "app/web/1").to_string();
        let error = found::<LoadBalancer>(view, &arn).unwrap_err();
        let words = format!("Load balancers '[{arn}]' not found");
        assert_eq!(told(&error), ("LoadBalancerNotFound", &*words));
        let [a, b] = [1, 2].map(|n| ImageId::from_random(n).to_string());
        let error = none_found::<ImageId>(&[&a, &b]);
        let words = format!("The image ids '[{a}, {b}]' do not exist");
        assert_eq!(told(&error), ("InvalidAMIID.NotFound", &*words));
        let error = none_found::<InstanceId>(&["i-1", "i-2"]);
        let words = "The instance IDs 'i-1, i-2' do not exist";
        assert_eq!(told(&error), ("InvalidInstanceID.NotFound", words));
    }
}
