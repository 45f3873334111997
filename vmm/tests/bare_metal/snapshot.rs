//! A machine that is saved, and goes on in another process.

use super::driver::looks_and_ejects;
use super::hung::promptly;
use super::jail::send_files;
use super::slow_disk::{Answers, SlowDisk};
use super::*;

use std::fs::File;
use std::io::Seek;
use std::process::Stdio;
use std::thread::JoinHandle;

use hearth_vmm::snapshot::Destination;
use hearth_vmm_api::Snapshot;
use proptest::prelude::*;
use serde_json::Value;

/// Counts in a register and in memory, and says each to the serial port; halts when the
/// two are not the same. `inc ebx; inc dword [0x200000]; cmp ebx, [0x200000]; jne` to the
/// end; `mov dx, 0x3f8; mov al, bl; out dx, al; jmp` to the beginning.
const COUNT: [u8; 27] = [
    0xff, 0xc3, 0xff, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, 0x3b, 0x1c, 0x25, 0x00, 0x00, 0x20, 0x00,
    0x75, 0x09, 0x66, 0xba, 0xf8, 0x03, 0x88, 0xd8, 0xee, 0xeb, 0xe5,
];

/// Asks for events until the generation id is another one: as for the power button.
const AWAIT_GENERATION: [u8; 9] = [0x66, 0xba, 0x10, 0x06, 0xec, 0xa8, 0x04, 0x74, 0xf7];

/// Whether it was answered so.
fn is_status(answer: &str, status: u16) -> bool {
    answer.starts_with(&format!("HTTP/1.1 {status} "))
}

impl Bench {
    pub(super) fn log(&self) -> Vec<u8> {
        std::fs::read(self.path("serial")).unwrap_or_default()
    }

    /// Saves the machine, which is paused then.
    pub(super) fn snapshot(&self, folder: &str) -> Snapshot {
        self.snapshot_with(folder, "")
    }

    /// The same, with more in the request.
    pub(super) fn snapshot_with(&self, folder: &str, more: &str) -> Snapshot {
        let folder = self.path(folder);
        std::fs::create_dir(&folder).expect("folder");
        self.pause();
        let body = format!(r#"{{"path":"{}"{more}}}"#, folder.display());
        let answer = self.send("PUT /v1/snapshot", &body);
        assert!(is_status(&answer, 200), "{answer}");
        let body = answer.split("\r\n\r\n").nth(1).expect("body");
        serde_json::from_str(body).expect("JSON")
    }

    pub(super) fn restored(&self, folder: &str) -> Command {
        let mut command = self.command();
        command.arg("--restore").arg(self.path(folder));
        command
    }

    pub(super) fn stop(&self, mut child: Vmm) {
        assert!(is_status(&self.ask("PUT /v1/stop"), 204));
        assert_eq!(child.wait().expect("ends").code(), Some(0));
    }
}

#[test]
fn a_guest_goes_on_counting() {
    let Some(bench) = Bench::new(&COUNT) else {
        return;
    };
    let vcpus = ["--vcpus", "2"];
    let child = bench.command().args(vcpus).start();
    bench.listens("socket");
    until("it counts", || bench.log().len() > 1000);
    let saved = bench.snapshot("snapshot");
    // Tables and code, and no more than that of 64 MiB.
    assert!((4096..4 << 20).contains(&saved.written_bytes), "{saved:?}");
    bench.stop(child);
    let saved = bench.log().len();
    // A snapshot may be gone on from as often as one likes, and a machine that does be
    // saved again.
    let second = bench.restored("snapshot").args(vcpus).start();
    until("it counts on", || bench.log().len() > saved + 1000);
    bench.snapshot("another");
    bench.ask("PUT /v1/resume");
    let at = bench.log().len();
    until("after it was saved", || bench.log().len() > at + 1000);
    bench.stop(second);
    let log = bench.log();
    for (index, pair) in log.windows(2).enumerate() {
        assert_eq!(
            pair[1],
            pair[0].wrapping_add(1),
            "at {index}, saved at {saved}"
        );
    }
    // From where the second was, and not from its end.
    std::fs::remove_file(bench.path("serial")).expect("log");
    let third = bench.restored("snapshot").args(vcpus).start();
    until("it counts again", || bench.log().len() > 1000);
    bench.stop(third);
    assert_eq!(bench.log()[..1000], log[saved..saved + 1000]);
}

/// A file system with clones, mounted for as long as this is held.
pub(super) struct Xfs(PathBuf);

impl Xfs {
    /// None where it can't be had, said aloud.
    pub(super) fn mount(bench: &Bench) -> Option<Self> {
        let (image, folder) = (bench.path("image"), bench.path("xfs"));
        std::fs::create_dir(&folder).expect("folder");
        let file = File::create_new(&image).expect("an image");
        file.set_len(320 << 20).expect("grows");
        let done = |program: &str, arguments: &[&std::ffi::OsStr]| {
            let output = Command::new(program).args(arguments).output();
            output.is_ok_and(|output| output.status.success())
        };
        let made = done("mkfs.xfs", &["-q".as_ref(), image.as_ref()]);
        let paths = [image.as_ref(), folder.as_ref()];
        if made
            && done(
                "mount",
                &[&["-o".as_ref(), "loop".as_ref()][..], &paths].concat(),
            )
        {
            return Some(Self(folder));
        }
        eprintln!("SKIPPED: no XFS can be mounted");
        None
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_snapshot_that_is_followed_makes_the_next_one_small() {
    let Some(bench) = Bench::new(&COUNT) else {
        return;
    };
    let xfs = Xfs::mount(&bench);
    let place = if xfs.is_some() { "xfs/" } else { "" };
    let name = |name: &str| format!("{place}{name}");
    let base = |name: &str| format!(r#","base":"{}""#, bench.path(name).display());
    let child = bench.command().start();
    bench.listens("socket");
    let goes_on = || {
        bench.ask("PUT /v1/resume");
        let before = bench.log().len();
        until("it counts", || bench.log().len() > before + 300);
    };
    goes_on();
    let first = bench.snapshot_with(&name("first"), r#","follow":true"#);
    goes_on();
    let since_first = base(&name("first")) + r#","follow":true"#;
    let second = bench.snapshot_with(&name("second"), &since_first);
    if xfs.is_some() {
        assert!(second.written_bytes < first.written_bytes / 2, "{second:?}");
    }
    goes_on();
    // The first is not the last any more.
    let body = |path: &str, base: &str| format!(r#"{{"path":"{path}"{base}}}"#);
    bench.pause();
    let third = bench.path(&name("third"));
    std::fs::create_dir(&third).expect("folder");
    let third = third.display().to_string();
    let answer = bench.send("PUT /v1/snapshot", &body(&third, &since_first));
    assert!(is_status(&answer, 409), "{answer}");
    let answer = bench.send("PUT /v1/snapshot", &body(&third, &base(&name("second"))));
    assert!(is_status(&answer, 200), "{answer}");
    // And the third is not followed.
    let fourth = bench.send("PUT /v1/snapshot", &body("/", &base(&name("third"))));
    assert!(is_status(&fourth, 409), "{fourth}");
    bench.stop(child);
    let saved = bench.log().len();
    let mut child = bench.restored(&name("third")).start();
    until("it counts", || bench.log().len() > saved + 300);
    child.kill().expect("killed");
    child.wait().expect("ends");
    let log = bench.log();
    let goes_on = |pair: &[u8]| pair[1] == pair[0].wrapping_add(1);
    assert!(log[..saved + 300].windows(2).all(goes_on));
}

#[test]
fn a_copy_has_another_generation_and_says_so() {
    let print = &PRINT_GENERATION[..];
    let code = [print, &AWAIT_GENERATION, print, &AWAIT_BUTTON, &power_off()].concat();
    let Some(bench) = Bench::new(&code) else {
        return;
    };
    let mut child = bench.command().start();
    until("printed", || bench.log().len() == 16);
    bench.listens("socket");
    bench.snapshot("snapshot");
    // As if the host lost its power.
    child.kill().expect("killed");
    child.wait().expect("ends");
    let second = bench.restored("snapshot").start();
    until("printed by the copy", || bench.log().len() == 32);
    bench.listens("socket");
    assert!(is_status(&bench.ask("PUT /v1/reset"), 204));
    until("printed by the kernel", || bench.log().len() == 48);
    bench.stop(second);
    let log = bench.log();
    let ids: Vec<_> = log.chunks(16).collect();
    assert_ne!(ids[0], ids[1], "a copy has another one");
    assert_eq!(ids[1], ids[2], "a reset keeps it");
}

#[test]
fn devices_are_in_the_slots_that_the_guest_knows() {
    let Some(bench) = Bench::new(&looks_and_ejects()) else {
        return;
    };
    let disks = ["first", "second"].map(|name| {
        let file = File::create_new(bench.path(name)).expect("a disk");
        file.set_len(1 << 20).expect("grows");
        format!("path={},id={name}", bench.path(name).display())
    });
    let mut command = bench.command();
    let child = command
        .args(disks.iter().flat_map(|disk| ["--disk", disk]))
        .start();
    bench.listens("socket");
    bench.ask("DELETE /v1/disks/first");
    until("ejected", || bench.machine().disks.len() == 1);
    // One whose unplug is requested, and that the guest has not ejected yet.
    bench.pause();
    bench.ask("DELETE /v1/disks/second");
    let before = bench.machine().disks;
    assert_eq!((before[0].slot, before[0].unplug_requested), (2, true));
    bench.snapshot("snapshot");
    bench.stop(child);
    let child = bench
        .restored("snapshot")
        .args(["--disk", &disks[1]])
        .start();
    bench.listens("socket");
    until("ejected", || bench.machine().disks.is_empty());
    bench.stop(child);
}

#[test]
fn a_reboot_that_was_asked_for_is_one_of_the_copy() {
    let Some(bench) = Bench::new(&[AWAIT_BUTTON.to_vec(), power_off()].concat()) else {
        return;
    };
    let child = bench.command().start();
    bench.listens("socket");
    bench.pause();
    let asked = bench.send("PUT /v1/reboot", r#"{"resets":0}"#);
    assert!(is_status(&asked, 204), "{asked}");
    bench.snapshot("snapshot");
    bench.stop(child);
    let child = bench.restored("snapshot").start();
    bench.listens("socket");
    until("back", || bench.machine().resets == 1);
    bench.stop(child);
}

#[test]
fn only_a_held_machine_is_saved_and_only_once_in_a_folder() {
    let Some(bench) = Bench::new(&COUNT) else {
        return;
    };
    let child = bench.command().start();
    bench.listens("socket");
    let body = format!(r#"{{"path":"{}"}}"#, bench.path("snapshot").display());
    let running = bench.send("PUT /v1/snapshot", &body);
    assert!(is_status(&running, 409), "{running}");
    bench.pause();
    let missing = bench.send("PUT /v1/snapshot", &body);
    assert!(
        is_status(&missing, 500) && missing.contains("No such file"),
        "{missing}"
    );
    bench.snapshot("snapshot");
    let again = bench.send("PUT /v1/snapshot", &body);
    assert!(
        is_status(&again, 409) && again.contains("already"),
        "{again}"
    );
    bench.stop(child);
}

/// A file with something done to its bytes.
fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).expect("read");
    change(&mut bytes);
    std::fs::write(path, bytes).expect("written");
}

#[test]
fn what_is_another_machine_or_damaged_is_refused() {
    let Some(bench) = Bench::new(&COUNT) else {
        return;
    };
    let child = bench.command().start();
    bench.listens("socket");
    bench.snapshot("snapshot");
    bench.stop(child);
    let refused = |arguments: &[&str]| {
        let output = bench.restored("snapshot").args(arguments).output();
        let output = output.expect("hearth-vmm runs");
        let code = output.status.code();
        assert!(ExitStatus::Unrestorable.is(code), "{output:?}");
        let line = String::from_utf8(output.stderr).expect("text");
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(line.starts_with("hearth-vmm: --restore"), "{line}");
        line
    };
    let two = refused(&["--vcpus", "2"]);
    assert!(two.contains("it has 1 vCPUs, and the machine 2"), "{two}");
    let balloon = refused(&["--balloon"]);
    assert!(
        balloon.contains("devices are rng (rng), and here"),
        "{balloon}"
    );
    let state = bench.path("snapshot").join("machine.json");
    let memory = bench.path("snapshot").join("memory");
    let whole = std::fs::read(&state).expect("read");
    change(&state, |bytes| bytes.truncate(whole.len() / 2));
    assert!(refused(&[]).contains("machine.json: EOF"));
    std::fs::write(&state, &whole).expect("written");
    change(&state, |bytes| {
        let at = bytes.len() / 2;
        bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
    });
    assert!(refused(&[]).contains("is damaged"));
    std::fs::write(&state, &whole).expect("written");
    change(&state, |bytes| {
        let text = String::from_utf8_lossy(bytes).replacen("\"format\":2", "\"format\":7", 1);
        *bytes = text.into_bytes();
    });
    assert!(refused(&[]).contains("is of format 7"));
    std::fs::write(&state, &whole).expect("written");
    let file = File::options().write(true).open(&memory);
    let file = file.expect("opens");
    file.set_len(4096).expect("cut");
    let cut = refused(&[]);
    assert!(cut.contains("the saved memory has 4096 bytes"), "{cut}");
    std::fs::remove_file(&state).expect("removed");
    assert!(refused(&[]).contains("machine.json: No such file"));
}

/// The leaves of a JSON value, each to be changed.
fn leaves<'a>(value: &'a mut Value, found: &mut Vec<&'a mut Value>) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| leaves(item, found)),
        Value::Object(fields) => fields.values_mut().for_each(|field| leaves(field, found)),
        leaf => found.push(leaf),
    }
}

/// Makes another value of a leaf.
fn distort(leaf: &mut Value, with: u64, at: usize) {
    match leaf {
        // KVM's structures, in hexadecimal.
        Value::String(text) if text.len() > 7 && text.is_ascii() => {
            let at = at % (text.len() - 7);
            text.replace_range(at..at + 8, &format!("{with:08x}")[..8]);
        }
        Value::Number(_) => *leaf = Value::from(with),
        Value::Bool(is) => *leaf = Value::from(!*is),
        _ => *leaf = Value::Null,
    }
}

#[test]
fn a_state_that_somebody_made_up_is_no_panic() {
    let Some(bench) = Bench::new(&COUNT) else {
        return;
    };
    File::create(bench.path("disk"))
        .and_then(|file| file.set_len(1 << 20))
        .expect("a disk");
    let disk = format!("path={}", bench.path("disk").display());
    let devices = ["--vcpus", "2", "--balloon", "--disk", &disk];
    let child = bench.command().args(devices).start();
    bench.listens("socket");
    bench.snapshot("snapshot");
    bench.stop(child);
    let state = bench.path("snapshot").join("machine.json");
    let bytes = std::fs::read(&state).expect("read");
    let whole: Value = serde_json::from_slice(&bytes).expect("JSON");
    let whole = whole["state"].clone();
    let run = |at: usize, with: u64| {
        let mut wrong = whole.clone();
        // A part first: most leaves are of the processors.
        let parts = wrong.as_object_mut().expect("parts");
        let (count, mut all) = (parts.len(), Vec::new());
        let part = parts.values_mut().nth(at % count).expect("one");
        leaves(part, &mut all);
        let (at, count) = (at / count, all.len());
        distort(all.swap_remove(at % count), with, at / count);
        // With its right digest.
        let [memory, file] = [(); 2].map(|()| tempfile::tempfile().expect("a file"));
        let made = Destination::Files {
            memory,
            state: file.try_clone().expect("open"),
        };
        let opened = made.open().expect("opens");
        let written = opened.write(&wrong, |_| Ok(()), || Ok(()));
        written.expect("written");
        let mut sealed = Vec::new();
        (&file).rewind().expect("a file");
        (&file).read_to_end(&mut sealed).expect("read");
        std::fs::write(&state, sealed).expect("written");
        let mut command = bench.restored("snapshot");
        let mut child = command.args(devices).stderr(Stdio::piped()).start();
        let is_over = |child: &mut Vmm| child.try_wait().expect("waits").is_some();
        until("it runs, or doesn't", || {
            let stream = UnixStream::connect(bench.path("socket"));
            let stop =
                stream.and_then(|mut stream| stream.write_all(b"PUT /v1/stop HTTP/1.1\r\n\r\n"));
            stop.is_ok() || is_over(&mut child)
        });
        let status = child.wait().expect("ends");
        let mut said = String::new();
        let errors = child.stderr.take().expect("a pipe");
        { errors }.read_to_string(&mut said).expect("text");
        assert!(
            !said.contains("panicked") && !said.contains("internal error in"),
            "{said}"
        );
        assert!(matches!(status.code(), Some(0..=3)), "{status}: {said}");
    };
    let config = ProptestConfig::with_cases(32);
    proptest!(config, |(at: usize, with in prop_oneof![0u64..300, any::<u64>()])| run(at, with));
}

/// Asks for a snapshot into open files, on a thread of its own, whose answer is the
/// client's.
pub(super) fn saves_to(bench: &Bench, disk: &SlowDisk, state: &File) -> JoinHandle<String> {
    let options = File::options().read(true).write(true).clone();
    let memory = options.open(disk.path()).expect("a file that is slow");
    let state = state.try_clone().expect("open");
    let path = bench.path("socket");
    std::thread::spawn(move || {
        let body = r#"{"path":"there"}"#;
        send_files(&path, "PUT /v1/snapshot", body, &[&memory, &state])
    })
}

#[test]
fn nobody_waits_for_a_snapshot_but_who_asked_for_it() {
    let (Some(bench), Some(disk)) = (Bench::new(&COUNT), SlowDisk::new()) else {
        return;
    };
    let child = bench.command().start();
    bench.listens("socket");
    let state = tempfile::tempfile().expect("a file");
    until("it counts", || bench.log().len() > 1000);
    bench.pause();
    disk.answers(Answers::NoTransfers);
    let client = saves_to(&bench, &disk, &state);
    until("it is being written", || disk.hangs());
    assert_eq!(bench.machine().state, MachineState::Saving);
    for refused in ["PUT /v1/resume", "PUT /v1/reset"] {
        let answer = promptly(&bench, refused);
        assert!(
            is_status(&answer, 409) && answer.contains("snapshot"),
            "{answer}"
        );
    }
    let second = bench.send("PUT /v1/snapshot", r#"{"path":"/nowhere"}"#);
    assert!(is_status(&second, 409), "{second}");
    assert!(is_status(&promptly(&bench, "PUT /v1/pause"), 204));
    // More who ask at once than are let in don't push out who waits.
    let many: Vec<_> = (0..20)
        .map(|_| UnixStream::connect(bench.path("socket")))
        .collect();
    promptly(&bench, "GET /v1/metrics");
    drop(many);
    assert!(!client.is_finished());
    disk.answers(Answers::Everything);
    let answer = client.join().expect("a client");
    assert!(is_status(&answer, 200), "{answer}");
    assert_eq!(bench.machine().state, MachineState::Paused);
    assert!(state.metadata().expect("a file").len() > 0);
    let before = bench.log().len();
    assert!(is_status(&bench.ask("PUT /v1/resume"), 204));
    until("it counts on", || bench.log().len() > before + 1000);
    bench.stop(child);
}

/// A folder on storage that doesn't answer: what is looked at of it first is a link there.
#[test]
fn nobody_waits_for_the_files_of_a_snapshot() {
    let (Some(bench), Some(disk)) = (Bench::new(&COUNT), SlowDisk::unremembered()) else {
        return;
    };
    let child = bench.command().start();
    bench.listens("socket");
    bench.snapshot_with("first", r#","follow":true"#);
    let folder = |name: &str| {
        let folder = bench.path(name);
        std::fs::create_dir(&folder).expect("folder");
        std::os::unix::fs::symlink(disk.path(), folder.join("machine.json")).expect("a link");
        folder
    };
    let (slow, there) = (folder("slow"), bench.path("there"));
    std::fs::create_dir(&there).expect("folder");
    let (slow, there) = (slow.display(), there.display());
    for (body, says) in [
        // There is a snapshot already, by then.
        (format!(r#"{{"path":"{slow}"}}"#), "already"),
        (
            format!(r#"{{"path":"{there}","base":"{slow}"}}"#),
            "memory: No such file",
        ),
    ] {
        disk.answers(Answers::Nothing);
        let socket = bench.path("socket");
        let client =
            std::thread::spawn(move || send_files(&socket, "PUT /v1/snapshot", &body, &[]));
        until("it waits for the disk", || {
            bench.machine().state == MachineState::Saving && disk.hangs()
        });
        assert!(is_status(&promptly(&bench, "PUT /v1/resume"), 409));
        promptly(&bench, "GET /v1/metrics");
        assert!(!client.is_finished());
        disk.answers(Answers::Everything);
        let answer = client.join().expect("a client");
        assert!(is_status(&answer, 409) && answer.contains(says), "{answer}");
        assert_eq!(bench.machine().state, MachineState::Paused);
    }
    // One that is given up meanwhile makes nothing either.
    let given_up = format!(
        r#"{{"path":"{there}","base":"{}"}}"#,
        bench.path("first").display()
    );
    let machine_json = bench.path("first").join("machine.json");
    let aside = bench.path("aside");
    std::fs::rename(&machine_json, &aside).expect("moved");
    std::os::unix::fs::symlink(disk.path(), &machine_json).expect("a link");
    disk.answers(Answers::Nothing);
    let socket = bench.path("socket");
    let client =
        std::thread::spawn(move || send_files(&socket, "PUT /v1/snapshot", &given_up, &[]));
    until("it waits for the disk", || {
        bench.machine().state == MachineState::Saving && disk.hangs()
    });
    assert!(is_status(&promptly(&bench, "DELETE /v1/snapshot"), 202));
    let answer = client.join().expect("a client");
    assert!(
        is_status(&answer, 500) && answer.contains("cancelled"),
        "{answer}"
    );
    // It may go on, though the disk hasn't answered, and is saved no more before that has.
    assert!(is_status(&promptly(&bench, "PUT /v1/resume"), 204));
    bench.pause();
    let socket = bench.path("socket");
    let again = format!(r#"{{"path":"{there}"}}"#);
    let refused = send_files(&socket, "PUT /v1/snapshot", &again, &[]);
    assert!(
        is_status(&refused, 409) && refused.contains("given up"),
        "{refused}"
    );
    disk.answers(Answers::Everything);
    std::fs::rename(&aside, &machine_json).expect("moved back");
    let list = || {
        std::fs::read_dir(bench.path("there"))
            .expect("list")
            .count()
    };
    // Nothing was begun, and the first one is followed as before.
    let second = format!(
        r#"{{"path":"{}","base":"{}"}}"#,
        bench.path("second").display(),
        bench.path("first").display()
    );
    std::fs::create_dir(bench.path("second")).expect("a folder");
    until("it may be saved again", || {
        let answer = send_files(&bench.path("socket"), "PUT /v1/snapshot", &second, &[]);
        assert!(
            is_status(&answer, 200) || answer.contains("given up"),
            "{answer}"
        );
        is_status(&answer, 200)
    });
    assert_eq!(list(), 0);
    bench.stop(child);
}

#[test]
fn who_is_stopped_while_it_is_saved_ends_at_once_and_leaves_no_snapshot() {
    let (Some(bench), Some(disk)) = (Bench::new(&COUNT), SlowDisk::new()) else {
        return;
    };
    let _child = bench.command().start();
    bench.listens("socket");
    let state = tempfile::tempfile().expect("a file");
    bench.pause();
    disk.answers(Answers::NoTransfers);
    let client = saves_to(&bench, &disk, &state);
    until("it is being written", || disk.hangs());
    assert!(is_status(&bench.ask("PUT /v1/stop"), 204));
    let answer = client.join().expect("a client");
    assert!(is_status(&answer, 409), "{answer}");
    until("it says why it ended", || bench.path("exit").exists());
    assert_eq!(bench.exit(), Exit::Stopped);
    assert_eq!(state.metadata().expect("a file").len(), 0);
    // Its process can go when its write can.
    disk.answers(Answers::Everything);
}

#[test]
fn a_snapshot_that_is_given_up_leaves_the_machine_paused() {
    let (Some(bench), Some(disk)) = (Bench::new(&COUNT), SlowDisk::new()) else {
        return;
    };
    let child = bench.command().start();
    bench.listens("socket");
    let state = tempfile::tempfile().expect("a file");
    until("it counts", || bench.log().len() > 1000);
    bench.pause();
    let none = promptly(&bench, "DELETE /v1/snapshot");
    assert!(is_status(&none, 204), "{none}");
    disk.answers(Answers::NoTransfers);
    let client = saves_to(&bench, &disk, &state);
    until("it is being written", || disk.hangs());
    let given_up = promptly(&bench, "DELETE /v1/snapshot");
    assert!(is_status(&given_up, 202), "{given_up}");
    // What is written by then is written; the rest is not begun.
    disk.answers(Answers::Everything);
    let answer = client.join().expect("a client");
    assert!(
        is_status(&answer, 500) && answer.contains("cancelled"),
        "{answer}"
    );
    assert_eq!(bench.machine().state, MachineState::Paused);
    assert_eq!(state.metadata().expect("a file").len(), 0);
    // Who is answered may ask for the same place again: nothing there is removed any more.
    let folder = bench.path("again");
    let into = format!(r#"{{"path":"{}"}}"#, folder.display());
    for _ in 0..20 {
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).expect("a folder");
        let (socket, body) = (bench.path("socket"), into.clone());
        let client =
            std::thread::spawn(move || send_files(&socket, "PUT /v1/snapshot", &body, &[]));
        bench.ask("DELETE /v1/snapshot");
        if is_status(&client.join().expect("a client"), 200) {
            continue;
        }
        let written = send_files(&bench.path("socket"), "PUT /v1/snapshot", &into, &[]);
        assert!(
            is_status(&written, 200) || written.contains("given up"),
            "{written}"
        );
        if is_status(&written, 200) {
            assert!(folder.join("memory").exists() && folder.join("machine.json").exists());
        }
    }
    let before = bench.log().len();
    assert!(is_status(&bench.ask("PUT /v1/resume"), 204));
    until("it counts on", || bench.log().len() > before + 1000);
    bench.stop(child);
}
