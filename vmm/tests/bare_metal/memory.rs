//! Memory that comes and goes.

use super::driver::{Function, add16, await_used, forever, store32};
use std::process::Stdio;

use hearth_vmm_api::ExitReason;

use super::*;

const MIB: u64 = 1 << 20;
/// As [`Bench::command`] has it, and a block of what may be plugged.
const FIRST: u64 = 64 * MIB;
const BLOCK: u64 = 2 * MIB;

/// The device is in the slot behind the entropy source's.
fn device() -> Function {
    Function::in_slot(2)
}

/// Writes a byte to the serial port.
fn say(byte: u8) -> Vec<u8> {
    out(0x3f8, byte)
}

/// Maps 4 GiB and on, of which the entry's page tables have nothing: two entries of the
/// page directory pointers and one of a directory, at 2 MiB each.
fn map_above_4_gib() -> Vec<u8> {
    let directory = 0x1_8000;
    let mut code = [store32(0xa020, directory | 3), store32(0xa024, 0)].concat();
    for page in 0..2 {
        code.extend(store32(directory + 8 * page, page << 21 | 0x83));
        code.extend(store32(directory + 8 * page + 4, 1));
    }
    code
}

/// `mov rbx, address; mov dword [rbx], 0x12345678`.
fn store_above(address: u64) -> Vec<u8> {
    let to = [&[0x48, 0xbb][..], &address.to_le_bytes()].concat();
    [&to[..], &[0xc7, 0x03, 0x78, 0x56, 0x34, 0x12]].concat()
}

/// `mov rbx, address; cmp dword [rbx], 0x12345678; jne` to itself, if it isn't that.
fn stop_unless_stored(address: u64) -> Vec<u8> {
    let from = [&[0x48, 0xbb][..], &address.to_le_bytes()].concat();
    let compare = [0x81, 0x3b, 0x78, 0x56, 0x34, 0x12, 0x75, 0xfe];
    [&from[..], &compare].concat()
}

/// Asks for the first block until it gets it.
fn plug_first() -> Vec<u8> {
    let device = device();
    let request = device.table(0) + 0x3000;
    let response = request + 64;
    let set_up = [
        device.place(),
        device.bring_up(&[0]),
        // struct virtio_mem_req: VIRTIO_MEM_REQ_PLUG, 4 GiB, one block.
        store32(request, 0),
        store32(request + 8, 0),
        store32(request + 12, 1),
        store32(request + 16, 1),
        device.describe(0, 0, (request, 24, 1, 1)),
        device.describe(0, 1, (response, 10, 2, 0)),
    ];
    let ask = [
        add16(device.available_index(0), 1),
        device.ring(0),
        await_used(device, 0),
        // `mov ebx, response; cmp byte [rbx], 0`.
        [&[0xbb][..], &response.to_le_bytes(), &[0x80, 0x3b, 0]].concat(),
    ]
    .concat();
    // `jne` to its beginning.
    let back = i32::try_from(ask.len() + 6).expect("short code");
    let again = [&[0x0f, 0x85][..], &(-back).to_le_bytes()].concat();
    [set_up.concat(), ask, again].concat()
}

/// Has what begins with 64 MiB have room for as many more.
fn with_memory(command: &Command) -> Command {
    let mut with = Command::new(command.get_program());
    with.args(command.get_args().map(|arg| match arg == "64" {
        true => "64,max=128".as_ref(),
        false => arg,
    }));
    with
}

impl Bench {
    fn change_memory(&self, bytes: u64) -> String {
        let body = format!(r#"{{"memory_bytes":{bytes}}}"#);
        self.send("PATCH /v1/machine", &body)
    }

    /// None of a machine that ends just now, or isn't there yet.
    fn metrics_if_there(&self) -> Option<Metrics> {
        let mut stream = UnixStream::connect(self.path("socket")).ok()?;
        stream.write_all(b"GET /v1/metrics HTTP/1.1\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split("\r\n\r\n").nth(1)?).ok()
    }
}

#[test]
fn a_block_is_plugged_when_it_is_offered_saved_and_gone_after_a_reset() {
    let above = 4 << 30;
    let code = [
        map_above_4_gib(),
        plug_first(),
        store_above(above),
        say(b'+'),
        AWAIT_BUTTON.to_vec(),
        stop_unless_stored(above),
        say(b'='),
        HALT.to_vec(),
    ];
    let Some(bench) = Bench::new(&code.concat()) else {
        return;
    };
    let mut child = with_memory(&bench.command()).start();
    bench.listens("socket");
    let log = || std::fs::read_to_string(bench.path("serial")).unwrap_or_default();
    until("it asks", || bench.metrics().devices["mem"]["refused"] > 1);
    let machine = bench.machine();
    let bytes = [
        machine.memory_bytes,
        machine.memory_requested_bytes,
        machine.memory_max_bytes,
    ];
    assert_eq!(bytes, [FIRST, FIRST, 2 * FIRST]);
    let answer = bench.change_memory(FIRST + BLOCK);
    assert!(answer.contains(" 200 "), "{answer}");
    until("it is there", || log() == "+");
    assert_eq!(bench.machine().memory_bytes, FIRST + BLOCK);
    // It is there in a process that takes the machine over, and nothing else is.
    let mut next = with_memory(&bench.command());
    let next = next.arg("--take-over").arg(bench.path("socket")).start();
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    child = next;
    let machine = bench.machine();
    let bytes = [machine.memory_bytes, machine.memory_requested_bytes];
    assert_eq!(bytes, [FIRST + BLOCK; 2]);
    bench.snapshot("snapshot");
    bench.ask("PUT /v1/stop");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    let mut child = with_memory(&bench.restored("snapshot")).start();
    bench.listens("socket");
    assert_eq!(bench.machine().memory_bytes, FIRST + BLOCK);
    bench.ask("PUT /v1/power-button");
    until("it has what it had", || log() == "+=");
    bench.ask("PUT /v1/reset");
    until("it is there again", || log() == "+=+");
    assert_eq!(bench.machine().memory_bytes, FIRST + BLOCK);
    for (bytes, why) in [
        (FIRST - BLOCK, "memory_bytes: 67108864 to 134217728"),
        (FIRST + 1, "in steps of 2097152"),
        (2 * FIRST + BLOCK, "to 134217728"),
        (u64::MAX, "to 134217728"),
    ] {
        let refused = bench.change_memory(bytes);
        assert!(
            refused.contains(" 400 ") && refused.contains(why),
            "{refused}"
        );
    }
    // One that can't be, so that neither is.
    let both = format!(r#"{{"memory_bytes":{FIRST},"vcpus":1}}"#);
    let refused = bench.send("PATCH /v1/machine", &both);
    assert!(
        refused.contains(" 409 ") && refused.contains("--vcpus"),
        "{refused}"
    );
    let machine = bench.machine();
    assert_eq!(machine.memory_requested_bytes, FIRST + BLOCK);
    bench.ask("PUT /v1/stop");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}

/// A processor's own virtualization has the machine end there; where KVM takes every
/// instruction apart, as on a host without, it is a store to no memory.
#[test]
fn what_is_not_plugged_takes_no_write() {
    let code = [map_above_4_gib(), store_above((4 << 30) + BLOCK)];
    let Some(bench) = Bench::new(&forever(code.concat())) else {
        return;
    };
    let mut child = with_memory(&bench.command()).stderr(Stdio::null()).start();
    let mut status = None;
    until("it ends, or writes nowhere", || {
        status = child.try_wait().expect("waits");
        let writes = |metrics: Metrics| {
            let mut exits = metrics.exits.into_iter();
            exits.any(|exit| exit.reason == ExitReason::MemoryWrite && exit.device == "none")
        };
        status.is_some() || bench.metrics_if_there().is_some_and(writes)
    });
    if let Some(status) = status {
        assert_eq!(status.code(), Some(1));
        let Exit::Crashed { detail } = bench.exit() else {
            panic!("{:?}", bench.exit());
        };
        assert!(detail.starts_with("vCPU 0: KVM_RUN failed"), "{detail}");
    }
}

#[test]
fn a_machine_without_a_most_keeps_its_memory() {
    let Some(bench) = Bench::new(&HALT) else {
        return;
    };
    let mut child = bench.command().start();
    bench.listens("socket");
    let refused = bench.change_memory(FIRST);
    assert!(
        refused.contains(" 409 ") && refused.contains("max=N"),
        "{refused}"
    );
    bench.ask("PUT /v1/stop");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}
