//! What is locked, and what a stack looks like afterwards: each with a control that shows the opposite.

use std::fs;
use std::hint::black_box;

use super::*;

/// The kernel's flags of the mapping that `address` is in.
fn flags(address: usize) -> Vec<String> {
    let smaps = fs::read_to_string("/proc/self/smaps").expect("this process");
    let mut is_inside = false;
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| is_inside) {
            return flags.split_whitespace().map(str::to_owned).collect();
        }
        let range = line.split_whitespace().next().and_then(|range| range.split_once('-'));
        if let Some((start, end)) = range
            && let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
        {
            is_inside = (start..end).contains(&address);
        }
    }
    panic!("{address:x} is nowhere")
}

fn is_protected(address: usize) -> bool {
    let flags = flags(address);
    ["lo", "dd"].iter().all(|flag| flags.iter().any(|has| has == flag))
}

#[test]
fn a_secret_is_locked_and_left_out_of_core_dumps_and_children() {
    for length in [0, 1, 32, 5000] {
        let secret = SecretBytes::filled(length, |bytes| {
            bytes.fill(7);
            Ok(())
        });
        let secret = secret.expect("locked");
        assert_eq!(secret.expose(), vec![7; length]);
        let address = secret.expose().as_ptr().addr();
        assert!(is_protected(address), "{:?}", flags(address));
        assert!(flags(address).contains(&"dc".to_owned()));
    }
    let ordinary = "on the heap".to_owned();
    assert!(!is_protected(ordinary.as_ptr().addr()), "everything seems to be locked");
}

#[test]
fn a_secret_that_could_not_be_filled_is_an_error() {
    let failed = SecretBytes::filled(32, |_| Err(Error::new(Reason::KbsProtocol, "no bytes")));
    assert_eq!(failed.expect_err("refused").reason(), Reason::KbsProtocol);
}

#[test]
fn a_secret_is_not_printed() {
    let secret = SecretBytes::new(vec![0x5a; 32].into());
    assert_eq!(format!("{secret:?}"), "SecretBytes(32 bytes)");
    assert_eq!(secret.to_hex().expect("locked").expose(), "5a".repeat(32).as_bytes());
}

/// Marks this many kilobytes of the stack.
const DEPTH: usize = 300;
/// No address, length or code has this byte four times in a row.
const MARK: [u8; 4] = [0xa7; 4];

#[inline(never)]
fn mark(depth: usize) -> usize {
    let area = black_box([MARK[0]; 1024]);
    let below = if depth == 0 { area.as_ptr().addr() } else { mark(depth - 1) };
    black_box(&area);
    below
}

/// How many marks lie from `start` to this frame, in what the stack of this thread was.
#[inline(never)]
fn marks_above(start: usize) -> usize {
    let here = 0_u8;
    let length = black_box(&raw const here).addr() - start;
    let mut stack = vec![0; length];
    let memory = fs::File::open("/proc/self/mem").expect("this process");
    let offset = u64::try_from(start).expect("an address");
    std::os::unix::fs::FileExt::read_exact_at(&memory, &mut stack, offset).expect("a stack is readable");
    stack.windows(MARK.len()).filter(|window| *window == MARK).count()
}

#[test]
fn work_leaves_nothing_on_a_stack_that_is_wiped() {
    let look = |start| marks_above(start);
    std::thread::spawn(move || {
        let start = mark(DEPTH);
        assert!(look(start) > DEPTH * 1000, "what is not wiped is not found");
    })
    .join()
    .expect("the control");
    std::thread::spawn(move || {
        let start = wiping_the_stack(|| {
            let here = 0_u8;
            let address = black_box(&raw const here).addr();
            assert!(is_protected(address), "{:?}", flags(address));
            Ok(mark(DEPTH))
        });
        assert_eq!(look(start.expect("locked")), 0);
        let here = 0_u8;
        assert!(!flags(black_box(&raw const here).addr()).contains(&"lo".to_owned()), "it stays locked");
    })
    .join()
    .expect("the test");
}

#[test]
fn a_stack_is_wiped_when_the_work_panics_or_fails() {
    std::thread::spawn(|| {
        let mut start = 0;
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wiping_the_stack(|| -> Result<()> {
                start = mark(DEPTH);
                panic!("on purpose");
            })
        }));
        assert!(panicked.is_err());
        assert_eq!(marks_above(start), 0);
        let refused = wiping_the_stack(|| -> Result<()> {
            start = mark(DEPTH);
            Err(Error::new(Reason::Internal, "on purpose"))
        });
        assert_eq!(refused.expect_err("refused").reason(), Reason::Internal);
        assert_eq!(marks_above(start), 0);
    })
    .join()
    .expect("the test");
}
