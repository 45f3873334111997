//! `MaxResults` and `NextToken`.
//!
//! A token is the key of the last item given, so a page begins where the one
//! before ended even when items came or went in between.

use std::ops::RangeInclusive;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::api::ApiError;

/// What one call asks of a list.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    /// `MaxResults`.
    pub max_results: Option<i64>,
    /// `NextToken`.
    pub next_token: Option<&'a str>,
    /// What `MaxResults` may be.
    pub range: RangeInclusiveI64,
}

/// The bounds of `MaxResults`, both included.
pub type RangeInclusiveI64 = (i64, i64);

/// The page of `items` that is asked for, and the token of the next one. The
/// items must be in the order of their keys.
///
/// # Errors
/// When `MaxResults` is out of its range or the token is none of ours.
pub fn page<T>(
    items: Vec<T>,
    key: impl Fn(&T) -> String,
    ask: Page<'_>,
) -> Result<(Vec<T>, Option<String>), ApiError> {
    let range: RangeInclusive<i64> = ask.range.0..=ask.range.1;
    let limit = match ask.max_results {
        Some(max) if !range.contains(&max) => {
            let why = format!(
                "Expecting a value from {} to {}.",
                range.start(),
                range.end()
            );
            return Err(ApiError::invalid_value(
                "MaxResults",
                &max.to_string(),
                &why,
            ));
        }
        Some(max) => usize::try_from(max).unwrap_or(usize::MAX),
        None => usize::MAX,
    };
    let after = ask.next_token.map(read_token).transpose()?;
    let mut rest = items
        .into_iter()
        .filter(|item| after.as_ref().is_none_or(|after| key(item) > *after));
    let given: Vec<T> = rest.by_ref().take(limit).collect();
    let next = match (rest.next(), given.last()) {
        (Some(_), Some(last)) => Some(write_token(&key(last))),
        _ => None,
    };
    Ok((given, next))
}

const MARK: &str = "after:";

fn write_token(key: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("{MARK}{key}"))
}

fn read_token(token: &str) -> Result<String, ApiError> {
    URL_SAFE_NO_PAD
        .decode(token)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|text| text.strip_prefix(MARK).map(str::to_owned))
        .ok_or_else(|| ApiError::new("InvalidNextToken", "The token in NextToken is not valid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(max: Option<i64>, token: Option<&str>) -> Page<'_> {
        Page {
            max_results: max,
            next_token: token,
            range: (1, 3),
        }
    }

    #[test]
    fn pages_cover_all_and_end() {
        let mut seen = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let all = vec!["a", "b", "c", "d", "e"];
            let (items, next) = page(all, |s| (*s).into(), ask(Some(2), token.as_deref())).unwrap();
            seen.extend(items);
            token = next;
            if token.is_none() {
                break;
            }
        }
        assert_eq!(seen, ["a", "b", "c", "d", "e"]);
    }

    #[test]
    fn a_full_last_page_has_no_token() {
        let (items, next) = page(vec!["a", "b"], |s| (*s).into(), ask(Some(2), None)).unwrap();
        assert_eq!((items.len(), next), (2, None));
    }

    #[test]
    fn a_page_begins_after_an_item_that_has_gone() {
        let key = |s: &&str| (*s).to_owned();
        let (_, next) = page(vec!["a", "b", "c"], key, ask(Some(2), None)).unwrap();
        let (items, _) = page(vec!["a", "c"], key, ask(Some(2), next.as_deref())).unwrap();
        assert_eq!(items, ["c"]);
    }

    #[test]
    fn bad_sizes_and_tokens_are_refused() {
        for (max, token) in [
            (Some(0), None),
            (Some(4), None),
            (None, Some("x")),
            (None, Some("é")),
        ] {
            assert!(page(vec!["a"], |s| (*s).into(), ask(max, token)).is_err());
        }
    }
}
