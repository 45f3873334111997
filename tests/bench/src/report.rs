//! Medians and ratios, as a table in Markdown.

use crate::Arguments;
use anyhow::{Context, Result};
use std::collections::BTreeMap;

/// A row: the metric, what it is called, and which way is better.
struct Row {
    metric: &'static str,
    title: &'static str,
    /// Digits after the point.
    digits: usize,
    more_is_better: bool,
}

const fn less(metric: &'static str, title: &'static str, digits: usize) -> Row {
    Row {
        metric,
        title,
        digits,
        more_is_better: false,
    }
}

const fn more(metric: &'static str, title: &'static str, digits: usize) -> Row {
    Row {
        metric,
        title,
        digits,
        more_is_better: true,
    }
}

const ROWS: &[Row] = &[
    less("boot_elf", "exec to init, ELF, {clock}", 1),
    less("boot_elf_kernel", "… of it on the guest kernel's clock", 1),
    less(
        "boot_elf_entry",
        "… from exec to the guest's first instruction",
        1,
    ),
    less(
        "boot_elf_host",
        "… all but what the guest kernel's clock saw",
        1,
    ),
    less("boot_bzimage", "exec to init, bzImage, {clock}", 1),
    less(
        "boot_bzimage_kernel",
        "… of it on the guest kernel's clock",
        1,
    ),
    less(
        "boot_bzimage_entry",
        "… from exec to the guest's first instruction",
        1,
    ),
    less(
        "boot_bzimage_host",
        "… all but what the guest kernel's clock saw",
        1,
    ),
    less(
        "restore_entry",
        "restore: exec to the guest's first instruction, {clock}",
        1,
    ),
    less("restore_answer", "… to its first answer on the network", 1),
    less("memory_rss", "memory beyond the guest's, RSS kB", 0),
    less("memory_private_dirty", "… of it private dirty, kB", 0),
    less("memory_rss_after_block", "RSS after block I/O, kB", 0),
    less(
        "memory_private_dirty_after_block",
        "… of it private dirty, kB",
        0,
    ),
    less("memory_rss_after_net", "RSS after network I/O, kB", 0),
    less(
        "memory_private_dirty_after_net",
        "… of it private dirty, kB",
        0,
    ),
    less("memory_rss_restored", "RSS after a restore, kB", 0),
    less(
        "memory_private_dirty_restored",
        "… of it private dirty, kB",
        0,
    ),
    less("binary", "binary, KiB", 0),
    more("seq_read_1m", "sequential read 1 MiB, MB/s (page cache)", 0),
    more(
        "seq_write_1m",
        "sequential write 1 MiB, MB/s (page cache)",
        0,
    ),
    more("read_4k_qd1", "random read 4 KiB QD1, IOPS (page cache)", 0),
    more(
        "write_4k_qd1",
        "random write 4 KiB QD1, IOPS (page cache)",
        0,
    ),
    more(
        "read_4k_qd16",
        "random read 4 KiB QD16, IOPS (page cache)",
        0,
    ),
    more(
        "write_4k_qd16",
        "random write 4 KiB QD16, IOPS (page cache)",
        0,
    ),
    more(
        "cold_read_4k_qd1",
        "random read 4 KiB QD1 from the disk, IOPS",
        0,
    ),
    more(
        "cold_read_4k_qd16",
        "random read 4 KiB QD16 from the disk, IOPS",
        0,
    ),
    more("flush_4k", "write 4 KiB and flush, a second", 0),
    more("tcp_guest_to_host", "TCP guest to host, MB/s", 1),
    more("tcp_host_to_guest", "TCP host to guest, MB/s", 1),
    less("udp_rtt", "UDP round trip p50, us", 1),
    less("tcp_rtt", "TCP round trip p50, us", 1),
];

/// The subject that the others are the peers of.
const OURS: &str = "hearth";

type Figures = BTreeMap<String, BTreeMap<String, Vec<f64>>>;

/// `report file= clock=`: reads what `measure` printed; `clock` is what a
/// millisecond of the host's clock means.
pub(crate) fn report(arguments: &Arguments) -> Result<()> {
    let file = arguments.one("file")?;
    let text = std::fs::read_to_string(file).context(file.to_owned())?;
    print!("{}", table(&text, arguments.one("clock")?)?);
    Ok(())
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        (values[middle - 1] + values[middle]) / 2.0
    }
}

/// Figures that differ by less than this part of their median are one.
const ALIKE: f64 = 0.005;
/// Two groups with more than this part of the median between them are two modes.
const APART: f64 = 0.15;

/// The two groups that figures fall into, if they do: each a fifth of them at least, and
/// two.
fn modes(values: &[f64]) -> Option<(&[f64], &[f64])> {
    let least = (values.len() / 5).max(2);
    let gap = |at: &usize| values[*at] - values[*at - 1];
    let at = (least..(values.len() + 1).saturating_sub(least))
        .max_by(|one, other| gap(one).total_cmp(&gap(other)))?;
    (gap(&at) > APART * median(values)).then(|| values.split_at(at))
}

/// The median, with the least and the most where they are not the same; of two modes the
/// median of each.
fn cell(values: &[f64], digits: usize) -> String {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = median(&values);
    let (least, most) = (values[0], values[values.len() - 1]);
    if let Some((low, high)) = modes(&values) {
        let (low, high) = (median(low), median(high));
        return format!("{low:.digits$} or {high:.digits$}");
    }
    if most - least < ALIKE * middle {
        return format!("{middle:.digits$}");
    }
    format!("{middle:.digits$} ({least:.digits$} to {most:.digits$})")
}

fn table(text: &str, clock: &str) -> Result<String> {
    let mut figures = Figures::new();
    let mut subjects: Vec<&str> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["R", subject, metric, value] = words[..] else {
            continue;
        };
        if !subjects.contains(&subject) {
            subjects.push(subject);
        }
        let values = figures
            .entry(metric.to_owned())
            .or_default()
            .entry(subject.to_owned())
            .or_default();
        values.push(value.parse().with_context(|| format!("`{line}`"))?);
    }
    let ours = subjects.contains(&OURS);
    let mut out = format!("| median (least to most) | {} |", subjects.join(" | "));
    out.push_str(if ours {
        " hearth is better than the best peer by |\n"
    } else {
        "\n"
    });
    out.push_str(&"|---".repeat(1 + subjects.len() + usize::from(ours)));
    out.push_str("|\n");
    for row in ROWS {
        let Some(by_subject) = figures.get(row.metric) else {
            continue;
        };
        out.push_str(&format!("| {} |", row.title.replace("{clock}", clock)));
        for subject in &subjects {
            match by_subject.get(*subject) {
                Some(values) => out.push_str(&format!(" {} |", cell(values, row.digits))),
                None => out.push_str(" - |"),
            }
        }
        if ours {
            out.push_str(&advantage(row, by_subject));
        }
        out.push('\n');
    }
    Ok(out)
}

/// The ratio to the best peer, above 1 where ours is the better figure.
fn advantage(row: &Row, by_subject: &BTreeMap<String, Vec<f64>>) -> String {
    let Some(ours) = by_subject.get(OURS).map(|values| median(values)) else {
        return " - |".to_owned();
    };
    let factor = |peer: f64| {
        if row.more_is_better {
            ours / peer
        } else {
            peer / ours
        }
    };
    let best = by_subject
        .iter()
        .filter(|(name, _)| *name != OURS)
        .map(|(name, values)| (factor(median(values)), name))
        .min_by(|a, b| a.0.total_cmp(&b.0));
    best.map_or_else(
        || " - |".to_owned(),
        |(ratio, name)| format!(" {ratio:.2}x ({name}) |"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_above_one_is_ours_being_better_than_the_best() {
        let text = "\
R hearth boot_elf 1000
R hearth boot_elf 9000
R hearth boot_elf 1200
R microvm boot_elf 1800
R q35 boot_elf 3000
R hearth read_4k_qd1 100
R microvm read_4k_qd1 200
D microvm boot-elf
";
        let table = table(text, "Minstr").unwrap();
        assert!(table.contains(
            "| exec to init, ELF, Minstr | 1200.0 (1000.0 to 9000.0) | 1800.0 | 3000.0 | 1.50x (microvm) |"
        ));
        assert!(
            table.contains("| 100 | 200 | - | 0.50x (microvm) |"),
            "{table}"
        );
    }

    #[test]
    fn a_figure_with_two_modes_shows_both() {
        assert_eq!(cell(&[10.0, 20.0, 10.1, 20.2], 1), "10.1 or 20.1");
        // One that is far off is none.
        assert_eq!(cell(&[10.0, 20.0, 10.1, 10.2], 0), "10 (10 to 20)");
        assert_eq!(cell(&[10.0, 10.01, 10.02], 0), "10");
        assert_eq!(cell(&[10.0, 20.0], 0), "15 (10 to 20)");
    }

    #[test]
    fn medians() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0]) - 2.5).abs() < 1e-9);
    }
}
