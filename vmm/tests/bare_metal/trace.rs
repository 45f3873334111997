//! What `--exit-trace` leaves, also of a jailed machine.

use super::*;

const RECORD: usize = 32;

#[test]
fn every_exit_is_in_the_trace_of_a_jailed_machine() {
    let code = [out(0x3f8, b'a'), out(0x3f8, b'b'), power_off()].concat();
    let Some(bench) = Bench::new(&code) else {
        return;
    };
    let mut trace = std::ffi::OsString::from("exits=1000,path=");
    trace.push(bench.path("trace"));
    let mut child = bench
        .command()
        .arg("--jail=best-effort")
        .arg("--exit-trace")
        .arg(trace)
        .start();
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    let all = std::fs::read(bench.path("trace")).expect("a trace");
    let line = all.iter().position(|byte| *byte == b'\n').expect("a head");
    let head: serde_json::Value = serde_json::from_slice(&all[..line]).expect("JSON");
    assert_eq!(head["version"], 1);
    assert_eq!(head["blocks"], 8);
    let exits: Vec<(String, String, u64, u64)> = all[line + 1..]
        .chunks(RECORD)
        .skip(1)
        .filter(|record| record[12] != 7 && record[12] != 6)
        .map(|record| {
            let name = |list: &str, place: u8| {
                let name = head[list][usize::from(place)].as_str();
                name.expect("a name").to_owned()
            };
            let number = |at: usize| u64::from_le_bytes(record[at..at + 8].try_into().unwrap());
            assert_eq!(record[14], 1, "bytes");
            (
                name("reasons", record[12] - 1),
                name("targets", record[13]),
                number(16),
                number(24),
            )
        })
        .collect();
    let write = |target: &str, port, value| ("port-write".into(), target.into(), port, value);
    assert_eq!(exits[0], write("serial", 0x3f8, b'a'.into()));
    assert_eq!(exits[1], write("serial", 0x3f8, b'b'.into()));
    let (_, target, ..) = exits.last().expect("the end");
    assert_eq!(target, "acpi");
}
