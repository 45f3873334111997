//! The serial port's other end: clients of the console socket, standard output.

use super::*;

/// Writes what comes from the serial port back to it, up to a 'q': `mov dx, 0x3fd; in
/// al, dx; test al, 1; jz` to the beginning; `mov dx, 0x3f8; in al, dx; out dx, al; cmp
/// al, 'q'; jne` to the beginning.
const ECHO: [u8; 19] = [
    0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7, 0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, 0x3c,
    b'q', 0x75, 0xed,
];

#[test]
fn clients_sit_at_the_console_also_of_a_jailed_machine() {
    let Some(bench) = Bench::new(&[out(0x3f8, b'>'), ECHO.to_vec(), power_off()].concat()) else {
        return;
    };
    let mut child = bench
        .command()
        .arg("--jail=best-effort")
        .arg("--console-socket")
        .arg(bench.path("console"))
        .start();
    bench.listens("console");
    let attach = || UnixStream::connect(bench.path("console")).expect("connects");
    let receive = |client: &mut UnixStream, wanted: &[u8]| {
        let mut got = vec![0; wanted.len()];
        client.read_exact(&mut got).expect("output");
        assert_eq!(got, wanted);
    };
    let mut first = attach();
    first.write_all(b"hi").expect("types");
    receive(&mut first, b">hi");
    let mut second = attach();
    receive(&mut second, b">hi");
    second.write_all(b"bye, q").expect("types");
    for client in [&mut first, &mut second] {
        receive(client, b"bye, q");
        assert_eq!(client.read(&mut [0]).expect("the end"), 0);
    }
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    assert_eq!(
        std::fs::read(bench.path("serial")).expect("log"),
        b">hibye, q"
    );
    assert!(!bench.path("console").exists());
}
