//! The tables as a guest reads them.

use super::*;

const TEXT: &str = "ec2a1b2c-3d4e-5f60-7182-93a4b5c6d7e8";

fn identity() -> Identity {
    Identity {
        manufacturer: "Amazon EC2".into(),
        product: "t3.micro".into(),
        uuid: Uuid::parse(TEXT).expect("a UUID"),
        asset_tag: "i-0123456789abcdef0".into(),
    }
}

/// Type, length, fields and strings of every structure.
fn structures(image: &[u8]) -> Vec<(u8, Vec<u8>, Vec<String>)> {
    let mut rest = &image[32..];
    let mut found = Vec::new();
    while !rest.is_empty() {
        let length = usize::from(rest[1]);
        let fields = rest[..length].to_vec();
        let end = rest[length..]
            .windows(2)
            .position(|pair| pair == [0, 0])
            .expect("two zeros");
        let strings = rest[length..length + end]
            .split(|byte| *byte == 0)
            .filter(|text| !text.is_empty())
            .map(|text| String::from_utf8(text.to_vec()).expect("text"))
            .collect();
        found.push((fields[0], fields, strings));
        rest = &rest[length + end + 2..];
    }
    found
}

#[test]
fn entry_point_adds_up_and_points_at_the_structures() {
    let image = build(&identity(), 2, 1 << 30).expect("fits");
    let sum = image[..0x18]
        .iter()
        .fold(0u8, |sum, b| sum.wrapping_add(*b));
    assert_eq!(sum, 0);
    assert_eq!(
        u64::from_le_bytes(image[16..24].try_into().expect("8 bytes")),
        SMBIOS + 32
    );
}

/// The lengths of SMBIOS 3.6's structures, section 7.
#[test]
fn structures_have_the_lengths_of_the_specification() {
    let image = build(&identity(), 2, 1 << 30).expect("fits");
    let lengths: Vec<(u8, u8)> = structures(&image)
        .iter()
        .map(|(kind, fields, _)| (*kind, fields[1]))
        .collect();
    assert_eq!(
        lengths,
        [
            (0, 0x1a),
            (1, 0x1b),
            (2, 0x0f),
            (3, 0x16),
            (4, 0x30),
            (16, 0x17),
            (17, 0x28),
            (19, 0x1f),
            (32, 0x0b),
            (127, 0x04)
        ]
    );
}

#[test]
fn uuid_is_mixed_endian_and_the_serial_is_its_text() {
    let image = build(&identity(), 1, 1 << 30).expect("fits");
    let all = structures(&image);
    let (_, fields, strings) = &all[1];
    assert_eq!(fields[8..12], [0x2c, 0x1b, 0x2a, 0xec]);
    assert_eq!(fields[12..16], [0x4e, 0x3d, 0x60, 0x5f]);
    assert_eq!(fields[16..18], [0x71, 0x82]);
    assert_eq!(strings[usize::from(fields[7]) - 1], TEXT);
    assert_eq!(strings[0], "Amazon EC2");
}

#[test]
fn large_memory_goes_into_the_extended_size() {
    let image = build(&identity(), 1, 64 << 30).expect("fits");
    let all = structures(&image);
    let (_, fields, _) = &all[6];
    assert_eq!(fields[0x0c..0x0e], [0xff, 0x7f]);
    assert_eq!(fields[0x1c..0x20], (64u32 << 10).to_le_bytes());
}

/// What a memory device says of its size: the word and the extended one.
fn sizes(bytes: u64) -> ([u8; 2], [u8; 4]) {
    let image = build(&identity(), 1, bytes).expect("fits");
    let all = structures(&image);
    let (_, fields, _) = &all[6];
    let word = fields[0x0c..0x0e].try_into().expect("2 bytes");
    (word, fields[0x1c..0x20].try_into().expect("4 bytes"))
}

#[test]
fn the_extended_size_begins_where_the_word_ends() {
    assert_eq!(sizes(0x7ffe * MIB), ([0xfe, 0x7f], [0; 4]));
    assert_eq!(sizes(0x7fff * MIB), ([0xff, 0x7f], [0xff, 0x7f, 0, 0]));
    // Its highest bit is reserved.
    assert_eq!(sizes(u64::MAX), ([0xff, 0x7f], [0xff, 0xff, 0xff, 0x7f]));
}

#[test]
fn characteristics_are_bits_of_the_specification() {
    let image = build(&identity(), 3, 1 << 30).expect("fits");
    let all = structures(&image);
    let word = |structure: usize, at: usize| {
        let bytes = &all[structure].1[at..at + 2];
        u16::from_le_bytes(bytes.try_into().expect("2 bytes"))
    };
    assert_eq!(word(0, 0x0a), 1 << 3, "none of the firmware are given");
    assert_eq!(word(4, 0x26), 1 << 2 | 1 << 3, "64-bit capable, multi-core");
    assert_eq!(word(4, 0x2a), 3, "cores");
    assert_eq!(word(6, 0x13), 1 << 1, "another kind of memory");
}

/// dmidecode, where it is there, reads the tables without a complaint.
#[test]
fn dmidecode_has_no_complaint() {
    use std::process::Command;
    let mut image = build(&identity(), 2, 1 << 30).expect("fits");
    // A dump has the structures at an offset of the file.
    image[16..24].copy_from_slice(&32u64.to_le_bytes());
    image[5] = 0;
    let sum = image[..0x18]
        .iter()
        .fold(0u8, |sum, b| sum.wrapping_add(*b));
    image[5] = sum.wrapping_neg();
    let folder = tempfile::tempdir().expect("folder");
    let dump = folder.path().join("dump");
    std::fs::write(&dump, image).expect("write");
    let Ok(output) = Command::new("dmidecode")
        .arg("--from-dump")
        .arg(&dump)
        .output()
    else {
        eprintln!("SKIPPED: dmidecode is not installed");
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    for complaint in [
        "<BAD INDEX>",
        "<OUT OF SPEC>",
        "TRUNCATED",
        "Invalid",
        "Wrong",
        "Unknown Type",
    ] {
        assert!(!text.contains(complaint), "{complaint}: {text}");
    }
    assert!(text.contains(&format!("UUID: {TEXT}")), "{text}");
    assert!(text.contains("Size: 1 GB"), "{text}");
}

#[test]
fn uuid_text_is_checked() {
    for bad in [
        "",
        "ec2",
        "ec2a1b2c3d4e5f60718293a4b5c6d7e8",
        "zc2a1b2c-3d4e-5f60-7182-93a4b5c6d7e8",
        "+c2a1b2c-3d4e-5f60-7182-93a4b5c6d7e8",
    ] {
        assert_eq!(Uuid::parse(bad), None, "{bad}");
    }
    assert_eq!(
        Uuid::parse(&TEXT.to_uppercase())
            .expect("a UUID")
            .to_string(),
        TEXT
    );
}
