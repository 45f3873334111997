//! Repeated string instructions at ports, which KVM hands over several rounds at once.

use super::*;

/// Where the guest puts what it reads: memory behind its own code.
const BUFFER: u32 = 0x10_8000;

/// `mov dx, port; mov ecx, count`.
fn at_port(port: u16, count: usize) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    let count = u32::try_from(count).expect("a count").to_le_bytes();
    [&[0x66, 0xba, low, high, 0xb9][..], &count].concat()
}

/// Writes bytes one by one: `lea rsi, [rip + 2]; jmp` over the text; `rep outsb`.
fn out_text(port: u16, text: &[u8]) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("a short text");
    let over = [0x48, 0x8d, 0x35, 2, 0, 0, 0, 0xeb, length];
    [&over[..], text, &at_port(port, text.len()), &[0xf3, 0x6e]].concat()
}

/// Reads bytes to the buffer: `mov edi, BUFFER; rep insb`.
fn in_buffer(port: u16, count: usize) -> Vec<u8> {
    let to = BUFFER.to_le_bytes();
    [&[0xbf][..], &to, &at_port(port, count), &[0xf3, 0x6c]].concat()
}

/// Writes bytes of the buffer: `mov esi, BUFFER; rep outsb`.
fn out_buffer(port: u16, count: usize) -> Vec<u8> {
    let from = BUFFER.to_le_bytes();
    [&[0xbe][..], &from, &at_port(port, count), &[0xf3, 0x6e]].concat()
}

#[test]
fn strings_go_through_a_port_byte_by_byte() {
    let text = b"thirty-one bytes through a loop";
    let loopback = |on: bool| out(0x3fc, u8::from(on) << 4);
    let code = [
        loopback(true),
        out_text(0x3f8, text),
        in_buffer(0x3f8, text.len()),
        loopback(false),
        out_buffer(0x3f8, text.len()),
        power_off(),
    ];
    let Some(bench) = Bench::new(&code.concat()) else {
        return;
    };
    let output = bench.run();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(std::fs::read(bench.path("serial")).expect("log"), text);
}
