//! What a guest of a few bytes is made of that drives virtio devices. The page tables of
//! the entry map the first 4 GiB as they are.

/// `mov dx, port; mov eax, value; out dx, eax`.
pub(super) fn out32(port: u16, value: u32) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    let [a, b, c, d] = value.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb8, a, b, c, d, 0xef]
}

/// `mov ebx, address`, then a store of one, two or four bytes.
fn store(address: u32, instruction: &[u8], value: &[u8]) -> Vec<u8> {
    [&[0xbb], &address.to_le_bytes()[..], instruction, value].concat()
}

/// `mov byte [address], value`.
pub(super) fn store8(address: u32, value: u8) -> Vec<u8> {
    store(address, &[0xc6, 0x03], &[value])
}

/// `mov word [address], value`.
pub(super) fn store16(address: u32, value: u16) -> Vec<u8> {
    store(address, &[0x66, 0xc7, 0x03], &value.to_le_bytes())
}

/// `mov dword [address], value`.
pub(super) fn store32(address: u32, value: u32) -> Vec<u8> {
    store(address, &[0xc7, 0x03], &value.to_le_bytes())
}

/// `code` without end: it, and `jmp` to its beginning.
pub(super) fn forever(mut code: Vec<u8>) -> Vec<u8> {
    let back = i32::try_from(code.len() + 5).expect("short code");
    code.push(0xe9);
    code.extend((-back).to_le_bytes());
    code
}

/// Where a slot's BAR of memory is put by [`Function::place`].
const BARS: u32 = 0xc000_0000;

/// Virtio 1.2, section 4.1.4.3, and where our BAR has its structures.
const DRIVER_FEATURE_SELECT: u32 = 0x08;
const DRIVER_FEATURE: u32 = 0x0c;
const STATUS: u32 = 0x14;
const QUEUE_SELECT: u32 = 0x16;
const QUEUE_SIZE: u32 = 0x18;
const QUEUE_MSIX_VECTOR: u32 = 0x1a;
const QUEUE_ENABLE: u32 = 0x1c;
const QUEUE_DESC: u32 = 0x20;
const QUEUE_DRIVER: u32 = 0x28;
const QUEUE_DEVICE: u32 = 0x30;
const NOTIFY: u32 = 0x3000;
const MSIX_TABLE: u32 = 0x4000;

/// Entries of each queue.
const SIZE: u16 = 16;

/// A virtio function as its driver has it.
#[derive(Clone, Copy)]
pub(super) struct Function {
    pub(super) slot: u8,
}

impl Function {
    pub(super) fn in_slot(slot: u8) -> Self {
        Self { slot }
    }

    /// Where its BAR of memory is.
    pub(super) fn bar(self) -> u32 {
        BARS + u32::from(self.slot) * 0x1_0000
    }

    /// A write of its configuration space.
    pub(super) fn config(self, register: u8, value: u32) -> Vec<u8> {
        let address = 1 << 31 | u32::from(self.slot) << 11 | u32::from(register);
        [out32(0xcf8, address), out32(0xcfc, value)].concat()
    }

    /// Places its BAR of memory and has it decode.
    pub(super) fn place(self) -> Vec<u8> {
        [
            self.config(0x10, self.bar()),
            self.config(0x14, 0),
            self.config(0x04, 0b110),
        ]
        .concat()
    }

    /// Descriptor table of a queue; its available and used rings have a page each behind
    /// it, and its buffers the fourth.
    pub(super) fn table(self, queue: u16) -> u32 {
        0x20_0000 + u32::from(self.slot) * 0x8_0000 + u32::from(queue) * 0x4000
    }

    /// Writes device status.
    pub(super) fn status(self, value: u8) -> Vec<u8> {
        store8(self.bar() + STATUS, value)
    }

    /// Brings the device up with these queues.
    pub(super) fn bring_up(self, queues: &[u16]) -> Vec<u8> {
        let common = self.bar();
        let mut code = [
            store8(common + STATUS, 0),
            store8(common + STATUS, 1 | 2),
            store32(common + DRIVER_FEATURE_SELECT, 1),
            store32(common + DRIVER_FEATURE, 1), // VIRTIO_F_VERSION_1
            store8(common + STATUS, 1 | 2 | 8),
        ]
        .concat();
        for queue in queues {
            let table = self.table(*queue);
            code.extend(store16(common + QUEUE_SELECT, *queue));
            code.extend(store16(common + QUEUE_SIZE, SIZE));
            for (register, page) in [(QUEUE_DESC, 0), (QUEUE_DRIVER, 1), (QUEUE_DEVICE, 2)] {
                code.extend(store32(common + register, table + page * 0x1000));
                code.extend(store32(common + register + 4, 0));
            }
            code.extend(store16(common + QUEUE_ENABLE, 1));
        }
        code.extend(store8(common + STATUS, 1 | 2 | 4 | 8));
        code
    }

    /// Resets the device, and doesn't wait for that.
    pub(super) fn reset(self) -> Vec<u8> {
        store8(self.bar() + STATUS, 0)
    }

    /// Gives a queue another vector.
    pub(super) fn vector(self, queue: u16, vector: u16) -> Vec<u8> {
        let select = store16(self.bar() + QUEUE_SELECT, queue);
        [select, store16(self.bar() + QUEUE_MSIX_VECTOR, vector)].concat()
    }

    /// Unmasks a vector, with a message of this data. PCI 3.0, section 6.8.2.
    pub(super) fn message(self, vector: u16, data: u32) -> Vec<u8> {
        let entry = self.bar() + MSIX_TABLE + 16 * u32::from(vector);
        [
            store32(entry, 0xfee0_0000),
            store32(entry + 8, data),
            store32(entry + 12, 0),
        ]
        .concat()
    }

    /// Writes a descriptor: address, length, flags, next.
    pub(super) fn describe(self, queue: u16, at: u16, chain: (u32, u32, u16, u16)) -> Vec<u8> {
        let place = self.table(queue) + 16 * u32::from(at);
        let (address, length, flags, next) = chain;
        [
            store32(place, address),
            store32(place + 4, 0),
            store32(place + 8, length),
            store32(place + 12, u32::from(flags) | u32::from(next) << 16),
        ]
        .concat()
    }

    /// Where a queue's available ring has its index.
    pub(super) fn available_index(self, queue: u16) -> u32 {
        self.table(queue) + 0x1002
    }

    /// Rings a queue's doorbell in memory.
    pub(super) fn ring(self, queue: u16) -> Vec<u8> {
        store16(self.bar() + NOTIFY + 4 * u32::from(queue), queue)
    }

    /// The request to a disk to read its first sector, at the table's head.
    pub(super) fn describe_read(self, queue: u16) -> Vec<u8> {
        let buffers = self.table(queue) + 0x3000;
        [
            // struct virtio_blk_req, virtio 1.2, section 5.2.6: VIRTIO_BLK_T_IN.
            self.describe(queue, 0, (buffers, 16, 1, 1)),
            self.describe(queue, 1, (buffers + 0x200, 512, 1 | 2, 2)),
            self.describe(queue, 2, (buffers + 0x100, 1, 2, 0)),
        ]
        .concat()
    }

    /// Has a disk read its first sector, as the first of its requests.
    pub(super) fn read_sector(self, queue: u16) -> Vec<u8> {
        [
            self.describe_read(queue),
            store16(self.available_index(queue), 1),
            self.ring(queue),
        ]
        .concat()
    }
}

/// `add word [address], value`.
pub(super) fn add16(address: u32, value: u8) -> Vec<u8> {
    store(address, &[0x66, 0x83, 0x03], &[value])
}

/// `inc dword [address]`.
pub(super) fn inc32(address: u32) -> Vec<u8> {
    store(address, &[0xff, 0x03], &[])
}

/// Says a byte of memory to the serial port: `mov ebx, address; mov al, [rbx]; mov dx,
/// 0x3f8; out dx, al`.
pub(super) fn say8(address: u32) -> Vec<u8> {
    store(address, &[0x8a, 0x03], &[0x66, 0xba, 0xf8, 0x03, 0xee])
}

/// Waits until a queue has returned all that is available: `mov ebx, used; mov ax, [rbx];
/// mov ebx, available; cmp ax, [rbx]; jne` to the beginning.
pub(super) fn await_used(function: Function, queue: u16) -> Vec<u8> {
    let used = store(function.table(queue) + 0x2002, &[0x66, 0x8b, 0x03], &[]);
    let available = function.available_index(queue);
    let compare = store(available, &[0x66, 0x3b, 0x03, 0x75, 0xee], &[]);
    [used, compare].concat()
}

/// `mov dx, port; in eax, dx`.
pub(super) fn in32(port: u16) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xed]
}

/// Without end: reads a register of the configuration space, and ejects what the machine
/// asks for (`mov dx, 0x61c; out dx, eax`).
pub(super) fn looks_and_ejects() -> Vec<u8> {
    let eject = [&in32(0x618)[..], &[0x66, 0xba, 0x1c, 0x06, 0xef]].concat();
    let look = [out32(0xcf8, 0x8000_0800), in32(0xcfc)].concat();
    forever([look, eject].concat())
}

/// Where the second processor starts, in real mode.
const SECOND: u32 = 0x1_0000;

/// Starts the second processor with `code`, of 16 bits. Intel SDM 3A, section 9.4.4.
pub(super) fn start_second(code: &[u8]) -> Vec<u8> {
    let length = u32::try_from(code.len()).expect("short code");
    // `lea rsi, [rip + 5]; jmp` over the code, `mov edi, SECOND; mov ecx, length; rep movsb`.
    let over = [
        &[0x48, 0x8d, 0x35, 5, 0, 0, 0, 0xe9],
        &length.to_le_bytes()[..],
    ]
    .concat();
    let [to, count] = [SECOND, length].map(u32::to_le_bytes);
    let copy = [&[0xbf][..], &to, &[0xb9], &count, &[0xf3, 0xa4]].concat();
    // `mov ecx, 20000; loop` to itself.
    let pause = vec![0xb9, 0x20, 0x4e, 0, 0, 0xe2, 0xfe];
    // The local APIC's interrupt command: INIT, then a start-up at the page.
    let command = [
        store32(0xfee0_00f0, 0x1ff), // enabled by software
        store32(0xfee0_0310, 1 << 24),
        store32(0xfee0_0300, 0x4500),
        pause,
        store32(0xfee0_0300, 0x4600 | SECOND >> 12),
    ];
    [&over, code, &copy, &command.concat()].concat()
}

/// In real mode: `mov dx, port; mov eax, value; out dx, eax`.
pub(super) fn real_out32(port: u16, value: u32) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    let [a, b, c, d] = value.to_le_bytes();
    vec![0xba, low, high, 0x66, 0xb8, a, b, c, d, 0x66, 0xef]
}

/// In real mode, without end: `code`, and `jmp` to its beginning.
pub(super) fn real_forever(mut code: Vec<u8>) -> Vec<u8> {
    let back = i16::try_from(code.len() + 3).expect("short code");
    code.push(0xe9);
    code.extend((-back).to_le_bytes());
    code
}
