//! `Filters`: the values of one filter are alternatives, several filters must
//! all match; `*` is any text and `?` any one character, and a backslash takes
//! their meaning away.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Filtering.html>

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::api::{ApiError, wire::quoted};

/// One filter of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Filter {
    /// What of the resource is looked at.
    pub name: String,
    /// What it may be.
    #[serde(default, rename = "Value")]
    pub values: Vec<String>,
}

/// What filters can look at.
pub trait Filterable {
    /// The names of its filters, without `tag:…` and `tag-key`.
    const FILTERS: &'static [&'static str];
    /// Whether it has those two as well.
    const TAGGED: bool = true;

    /// Its values under one of those names; a filter matches when one of them does.
    fn values(&self, filter: &str) -> Vec<String>;

    /// Its tags, where it can have any.
    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        None
    }
}

/// EC2's limit on the values of a request's filters.
const MAX_VALUES: usize = 200;
/// The longest pattern, in bytes: no value that it could match is longer.
const MAX_PATTERN: usize = 1024;

/// The filters of a request, checked.
#[derive(Debug, Clone)]
pub struct Filters(Vec<Filter>);

impl Filters {
    /// Checks that `T` has every filter that is asked for.
    ///
    /// # Errors
    /// `InvalidParameterValue` for a filter that it hasn't.
    pub fn new<T: Filterable>(filters: Vec<Filter>) -> Result<Self, ApiError> {
        if filters.iter().map(|f| f.values.len()).sum::<usize>() > MAX_VALUES {
            return Err(ApiError::new(
                "FilterLimitExceeded",
                format!("The filters have more than {MAX_VALUES} values"),
            ));
        }
        for filter in &filters {
            let name = filter.name.as_str();
            let of_tags = T::TAGGED && (name == "tag-key" || name.starts_with("tag:"));
            if !of_tags && !T::FILTERS.contains(&name) {
                return Err(ApiError::new(
                    "InvalidParameterValue",
                    format!("The filter '{}' is invalid", quoted(name)),
                ));
            }
            if filter.values.is_empty() {
                return Err(ApiError::new(
                    "InvalidParameterValue",
                    format!("The filter '{}' has no values", quoted(name)),
                ));
            }
            if filter.values.iter().any(|v| v.len() > MAX_PATTERN) {
                return Err(ApiError::new(
                    "InvalidParameterValue",
                    format!("A value of the filter '{}' is too long", quoted(name)),
                ));
            }
        }
        Ok(Self(filters))
    }

    /// Whether every filter matches.
    pub fn matches<T: Filterable>(&self, item: &T) -> bool {
        self.0.iter().all(|filter| {
            let values = values(item, &filter.name);
            values
                .iter()
                .any(|v| filter.values.iter().any(|pattern| wildcard(pattern, v)))
        })
    }
}

fn values<T: Filterable>(item: &T, name: &str) -> Vec<String> {
    // A resource's own filter comes first: `tag:` may be one in another sense.
    if T::FILTERS.contains(&name) {
        return item.values(name);
    }
    let Some(tags) = item.tags() else {
        return Vec::new();
    };
    match name.strip_prefix("tag:") {
        Some(key) => tags.get(key).cloned().into_iter().collect(),
        None => tags.keys().cloned().collect(),
    }
}

/// Whether `pattern` matches the whole of `text`. At each mismatch the last `*`
/// takes one character more: never worse than the product of both lengths.
fn wildcard(pattern: &str, text: &str) -> bool {
    let pattern = tokens(pattern);
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(Token::Any) => {
                star = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some(Token::One) => {
                p += 1;
                t += 1;
                continue;
            }
            Some(Token::Just(c)) if *c == text[t] => {
                p += 1;
                t += 1;
                continue;
            }
            _ => {}
        }
        let Some((after, taken)) = star else {
            return false;
        };
        star = Some((after, taken + 1));
        p = after;
        t = taken + 1;
    }
    pattern[p..].iter().all(|token| matches!(token, Token::Any))
}

enum Token {
    Any,
    One,
    Just(char),
}

fn tokens(pattern: &str) -> Vec<Token> {
    let mut out = Vec::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        out.push(match c {
            '*' => Token::Any,
            '?' => Token::One,
            '\\' => Token::Just(chars.next().unwrap_or('\\')),
            c => Token::Just(c),
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn wildcards() {
        for (pattern, text, matches) in [
            ("", "", true),
            ("*", "", true),
            ("a*c", "abbbc", true),
            ("a*c", "abbbcd", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*-1*", "us-east-1a", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("\\?\\\\", "?\\", true),
            ("ABC", "abc", false),
            ("é?", "éü", true),
            ("a**b*", "aXb", true),
        ] {
            assert_eq!(wildcard(pattern, text), matches, "{pattern} {text}");
        }
    }

    struct Thing(BTreeMap<String, String>);

    impl Filterable for Thing {
        const FILTERS: &'static [&'static str] = &["size", "colour"];
        fn values(&self, filter: &str) -> Vec<String> {
            match filter {
                "size" => vec!["1".into(), "2".into()],
                _ => vec!["red".into()],
            }
        }
        fn tags(&self) -> Option<&BTreeMap<String, String>> {
            Some(&self.0)
        }
    }

    fn matches(filters: &[(&str, &[&str])]) -> Result<bool, String> {
        let filters = filters
            .iter()
            .map(|(name, values)| Filter {
                name: (*name).into(),
                values: values.iter().map(|v| (*v).into()).collect(),
            })
            .collect();
        let thing = Thing(BTreeMap::from([("Name".into(), "web".into())]));
        Filters::new::<Thing>(filters)
            .map(|f| f.matches(&thing))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn values_are_alternatives_and_filters_add_up() {
        assert_eq!(matches(&[]), Ok(true));
        assert_eq!(matches(&[("size", &["9", "2"])]), Ok(true));
        assert_eq!(
            matches(&[("size", &["2"]), ("colour", &["blue"])]),
            Ok(false)
        );
        assert_eq!(matches(&[("tag:Name", &["w*"])]), Ok(true));
        assert_eq!(matches(&[("tag:Other", &["*"])]), Ok(false));
        assert_eq!(matches(&[("tag-key", &["Name"])]), Ok(true));
    }

    #[test]
    fn unknown_and_empty_filters_are_refused() {
        assert_eq!(
            matches(&[("weight", &["1"])]).unwrap_err(),
            "InvalidParameterValue: The filter 'weight' is invalid"
        );
        assert!(matches(&[("size", &[])]).is_err());
        assert!(matches(&[("size", &["x"; 201])]).is_err());
    }

    proptest! {
        #[test]
        fn escaped_text_matches_itself_alone(text in "[a*?\\\\]{0,12}", other in "[a*?\\\\]{0,12}") {
            let escaped: String = text.chars().flat_map(|c| ['\\', c]).collect();
            prop_assert!(wildcard(&escaped, &text));
            prop_assert_eq!(wildcard(&escaped, &other), text == other);
        }
    }
}
