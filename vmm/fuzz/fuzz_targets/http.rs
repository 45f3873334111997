//! What a client of the control socket may send, up to the command it becomes.

#![no_main]

use hearth_vmm::control::http::{Parsed, parse};
use hearth_vmm::control::route;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Parsed::Request(request) = parse(data) {
        let _ = route(&request);
        // A request that is whole stays the same whatever follows it.
        let longer = [data, b"GET / HTTP/1.1\r\n\r\n"].concat();
        assert_eq!(parse(&longer), Parsed::Request(request));
    }
});
