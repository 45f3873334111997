//! `MaxResults` and `NextToken`.
//!
//! A token is the key of the last item given, so a page begins where the one
//! before ended even when items came or went in between.

use std::ops::RangeInclusive;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::api::ApiError;

/// How many a page has at most when no `MaxResults` asks for fewer. EC2 gives all then,
/// or what it can make in time, and says that who has many should ask for pages.
///
/// <https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-pagination.html>
const DEFAULT_PAGE_SIZE: usize = 10_000;

/// What one call asks of a list, checked.
#[derive(Debug, Clone)]
pub struct Page {
    limit: usize,
    after: Option<String>,
}

impl Page {
    /// `MaxResults`, which must be one of `pages`, and `NextToken`.
    ///
    /// # Errors
    /// When `MaxResults` is out of its range or the token is none of ours.
    pub fn new(
        max_results: Option<i64>,
        next_token: Option<&str>,
        pages: RangeInclusive<i64>,
    ) -> Result<Self, ApiError> {
        let limit = match max_results {
            Some(max) if !pages.contains(&max) => {
                let (least, most) = pages.into_inner();
                let why = format!("Expecting a value from {least} to {most}.");
                return Err(ApiError::invalid_value(
                    "MaxResults",
                    &max.to_string(),
                    &why,
                ));
            }
            Some(max) => usize::try_from(max).unwrap_or(usize::MAX),
            None => DEFAULT_PAGE_SIZE,
        };
        let after = next_token.map(read_token).transpose()?;
        Ok(Self { limit, after })
    }

    /// The page of those `items` that match, and the token of the next one. The
    /// items must be in the order of their keys; those behind the page's end are
    /// looked at only until one more is found.
    pub fn of<T>(
        &self,
        items: impl IntoIterator<Item = T>,
        key: impl Fn(&T) -> String,
        matches: impl Fn(&T) -> bool,
    ) -> (Vec<T>, Option<String>) {
        let after = self.after.as_deref();
        let mut rest = items
            .into_iter()
            .skip_while(|item| after.is_some_and(|after| key(item).as_str() <= after))
            .filter(matches);
        let given: Vec<T> = rest.by_ref().take(self.limit).collect();
        let next = match given.last() {
            // Where all is given there is no more, and nobody looks for it.
            Some(last) if given.len() == self.limit && rest.next().is_some() => {
                Some(write_token(&key(last)))
            }
            _ => None,
        };
        (given, next)
    }
}

const MARK: &str = "after:";

fn write_token(key: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("{MARK}{key}"))
}

/// The key that a token stands for.
///
/// # Errors
/// `InvalidNextToken`.
pub(super) fn read_token(token: &str) -> Result<String, ApiError> {
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

    fn page(
        items: Vec<&str>,
        max: Option<i64>,
        token: Option<&str>,
    ) -> (Vec<String>, Option<String>) {
        let page = Page::new(max, token, 1..=3).unwrap();
        let items = items.into_iter().map(str::to_owned);
        page.of(items, String::clone, |_| true)
    }

    #[test]
    fn pages_cover_all_and_end() {
        let mut seen = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let all = vec!["a", "b", "c", "d", "e"];
            let (items, next) = page(all, Some(2), token.as_deref());
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
        let (items, next) = page(vec!["a", "b"], Some(2), None);
        assert_eq!((items.len(), next), (2, None));
    }

    #[test]
    fn unasked_a_page_has_ten_thousand_and_the_rest_is_on_the_next() {
        let all = || (10_000..20_001).map(|n| n.to_string());
        let of = |token: Option<&str>| {
            let page = Page::new(None, token, 5..=1000).unwrap();
            page.of(all(), String::clone, |_| true)
        };
        let (first, next) = of(None);
        assert_eq!((first.len(), first[9_999].as_str()), (10_000, "19999"));
        assert_eq!(of(next.as_deref()), (vec!["20000".to_owned()], None));
    }

    #[test]
    fn a_page_begins_after_an_item_that_has_gone() {
        let (_, next) = page(vec!["a", "b", "c"], Some(2), None);
        let (items, _) = page(vec!["a", "c"], Some(2), next.as_deref());
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
            assert!(Page::new(max, token, 1..=3).is_err());
        }
    }
}
