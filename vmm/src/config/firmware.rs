//! `--firmware FILE[,vars=FILE]`.

use std::path::PathBuf;

/// Firmware asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware {
    /// Its code.
    pub code: PathBuf,
    /// What its variables are kept in, if they are.
    pub variables: Option<PathBuf>,
}

pub(super) fn parse(text: &str) -> Result<Firmware, String> {
    let (code, rest) = text.split_once(',').unwrap_or((text, ""));
    let wrong = || format!("--firmware {text:?}: it is FILE or FILE,vars=FILE");
    if code.is_empty() || code.contains('=') {
        return Err(wrong());
    }
    let variables = match rest.split_once('=') {
        None if rest.is_empty() && !text.ends_with(',') => None,
        Some(("vars", path)) if !path.is_empty() && !path.contains(',') => Some(path.into()),
        _ => return Err(wrong()),
    };
    Ok(Firmware {
        code: code.into(),
        variables,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Refusal, parse as parse_line};

    #[test]
    fn firmware_stands_in_for_a_kernel() {
        let line = |more: &[&str]| {
            let all = ["hearth-vmm", "--firmware", "/c.fd"].iter().chain(more);
            parse_line(all).map_err(|refusal| match refusal {
                Refusal::Mistake(line) | Refusal::Information(line) => line,
            })
        };
        let description = line(&[]).expect("is right");
        assert_eq!(description.kernel, None);
        assert!(description.firmware.is_some());
        for [flag, value] in [
            ["--kernel", "/k"],
            ["--initrd", "/i"],
            ["--cmdline", "x"],
            ["--restore", "/s"],
            ["--take-over", "/t"],
            ["--template", "2"],
            ["--vcpus", "1,max=2"],
            ["--memory", "64,max=128"],
        ] {
            let mistake = line(&[flag, value]).expect_err("refused");
            assert!(mistake.contains(flag), "{mistake}");
        }
    }

    #[test]
    fn its_board_has_a_bridge_in_the_last_slot() {
        let last = |more: &[&str]| {
            let all = ["hearth-vmm", "--firmware", "/c.fd"].iter().chain(more);
            parse_line(all).map(|description| description.last_slot)
        };
        assert!(matches!(last(&[]), Ok(30)));
        assert!(matches!(last(&["--hotplug-slots", "29"]), Ok(30)));
        assert!(last(&["--hotplug-slots", "30"]).is_err());
    }

    #[test]
    fn code_comes_first_and_variables_may_follow() {
        let parsed = parse("/c.fd,vars=/v.fd").expect("is right");
        assert_eq!(parsed.code, PathBuf::from("/c.fd"));
        assert_eq!(parsed.variables, Some(PathBuf::from("/v.fd")));
        assert_eq!(parse("/c.fd").expect("is right").variables, None);
        for wrong in [
            "",
            "vars=/v",
            "/c,",
            "/c,vars=",
            "/c,v=/v",
            "/c,vars=/v,x",
            "/c,vars",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
