//! Errors as one line. The Display of an error never repeats its source; who prints
//! one, at the edge, prints the chain.

use std::error::Error;

/// An error and its sources, as "what: why: why that".
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line.push_str(": ");
        line.push_str(&error.to_string());
        source = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::chain;

    #[derive(Debug, thiserror::Error)]
    #[error("the disk")]
    struct Outer(#[source] std::num::ParseIntError);

    #[test]
    fn each_link_is_said_once() {
        let source = "x".parse::<u8>().expect_err("no number");
        let expected = format!("the disk: {source}");
        assert_eq!(chain(&Outer(source)), expected);
    }
}
