//! Waiting for something to be so, with a deadline.

use std::time::{Duration, Instant};

/// How long to let pass between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// How much slower than a plain machine this one may be: every deadline is
/// multiplied by `HEARTH_TEST_PATIENCE` (default 1), so that a loaded machine is
/// slow and not red.
fn patience() -> u32 {
    std::env::var("HEARTH_TEST_PATIENCE")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(1)
}

/// Looks again and again until `look` gives something, and returns that.
///
/// # Panics
/// When `seconds` have passed; says what was waited for and what was seen last.
pub fn until<T, E: std::fmt::Display>(
    what: &str,
    seconds: u64,
    mut look: impl FnMut() -> Result<T, E>,
) -> T {
    let began = Instant::now();
    let deadline = Duration::from_secs(seconds) * patience();
    loop {
        match look() {
            Ok(found) => {
                eprintln!("  {what}: after {:.1} s", began.elapsed().as_secs_f32());
                return found;
            }
            Err(seen) if began.elapsed() > deadline => {
                panic!(
                    "{what}: not within {} s; seen last: {seen}",
                    deadline.as_secs()
                )
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}
