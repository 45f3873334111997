//! The counters in the text format that Prometheus reads, version 0.0.4.

use std::fmt::Write;

use hearth_vmm_api::{ExitReason, Metrics};

/// Writes them all.
pub(super) fn text(metrics: &Metrics) -> String {
    let mut text = String::new();
    // Writing to a string doesn't fail.
    let _ = write(metrics, &mut text);
    text
}

fn write(metrics: &Metrics, text: &mut String) -> std::fmt::Result {
    head(
        text,
        "hearth_vmm_exits_total",
        "counter",
        "Exits of vCPUs to the VMM.",
    )?;
    for count in &metrics.exits {
        let (reason, device) = (count.reason.name(), label(&count.device));
        let labels = format!("reason=\"{reason}\",device=\"{device}\"");
        writeln!(text, "hearth_vmm_exits_total{{{labels}}} {}", count.exits)?;
    }
    let name = "hearth_vmm_exit_seconds";
    head(text, name, "histogram", "From an exit to the next entry.")?;
    for latency in &metrics.exit_latency {
        let reason = latency.reason.name();
        let mut exits = 0;
        for (ns, more) in &latency.buckets {
            exits += more;
            let labels = format!("reason=\"{reason}\",le=\"{}\"", seconds(*ns));
            writeln!(text, "{name}_bucket{{{labels}}} {exits}")?;
        }
        writeln!(
            text,
            "{name}_bucket{{reason=\"{reason}\",le=\"+Inf\"}} {exits}"
        )?;
        let sum = seconds(ns_of(metrics, latency.reason));
        writeln!(text, "{name}_sum{{reason=\"{reason}\"}} {sum}")?;
        writeln!(text, "{name}_count{{reason=\"{reason}\"}} {exits}")?;
    }
    let name = "hearth_vmm_device_total";
    head(
        text,
        name,
        "counter",
        "What a device counts, by the counter's name.",
    )?;
    for (device, counters) in &metrics.devices {
        let device = label(device);
        for (counter, value) in counters {
            writeln!(
                text,
                "{name}{{device=\"{device}\",counter=\"{counter}\"}} {value}"
            )?;
        }
    }
    Ok(())
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) -> std::fmt::Result {
    writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}")
}

fn ns_of(metrics: &Metrics, reason: ExitReason) -> u64 {
    let all = metrics.exits.iter();
    all.filter(|count| count.reason == reason)
        .map(|count| count.ns)
        .sum()
}

fn seconds(ns: u64) -> String {
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

/// A label's value: of the characters that a device's id may have, these are the
/// format's own.
fn label(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use hearth_vmm_api::{ExitCount, ExitLatency};

    use super::*;

    #[test]
    fn buckets_add_up_and_labels_are_quoted() {
        let metrics = Metrics {
            vcpu_exits: 6,
            exits: vec![ExitCount {
                reason: ExitReason::PortWrite,
                device: "a\"b".to_owned(),
                exits: 6,
                ns: 1_500_000_000,
            }],
            exit_latency: vec![ExitLatency {
                reason: ExitReason::PortWrite,
                buckets: vec![(256, 4), (1024, 2)],
            }],
            devices: [("rng".to_owned(), [("requests".to_owned(), 7)].into())].into(),
        };
        let text = text(&metrics);
        let values: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            values,
            [
                "hearth_vmm_exits_total{reason=\"port-write\",device=\"a\\\"b\"} 6",
                "hearth_vmm_exit_seconds_bucket{reason=\"port-write\",le=\"0.000000256\"} 4",
                "hearth_vmm_exit_seconds_bucket{reason=\"port-write\",le=\"0.000001024\"} 6",
                "hearth_vmm_exit_seconds_bucket{reason=\"port-write\",le=\"+Inf\"} 6",
                "hearth_vmm_exit_seconds_sum{reason=\"port-write\"} 1.500000000",
                "hearth_vmm_exit_seconds_count{reason=\"port-write\"} 6",
                "hearth_vmm_device_total{device=\"rng\",counter=\"requests\"} 7",
            ]
        );
    }
}
