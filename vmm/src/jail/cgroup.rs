//! The control group that the process was started in.

use std::fs;

/// Whether a cgroup v2 limits this process's memory.
///
/// # Errors
/// What was found instead, in words.
pub(super) fn limit() -> Result<(), String> {
    let groups = fs::read_to_string("/proc/self/cgroup")
        .map_err(|error| format!("/proc/self/cgroup: {error}"))?;
    let group = own(&groups).ok_or("this host has no cgroup v2")?;
    let limit = format!("/sys/fs/cgroup{}/memory.max", group.trim_end_matches('/'));
    match fs::read_to_string(&limit) {
        Ok(text) if text.trim() == "max" => Err(format!("{limit} is \"max\"")),
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{limit}: {error}")),
    }
}

/// The group in the unified hierarchy: the line with number 0 (cgroups(7)).
fn own(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| line.strip_prefix("0::"))
}

#[cfg(test)]
mod tests {
    use super::own;

    #[test]
    fn the_unified_group_is_found_among_others() {
        assert_eq!(own("12:pids:/a\n0::/hearth/i-1\n"), Some("/hearth/i-1"));
        assert_eq!(own("0::/\n"), Some("/"));
        assert_eq!(own("12:pids:/a\n"), None);
    }
}
