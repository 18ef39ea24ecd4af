//! The peer transport on the emulator: windows and links between ranks that are threads and ranks that are processes,
//! with every order of execution that CUDA leaves open, and what happens where devices or the system refuse.

mod allocations;
mod processes;
mod ranks;
mod threads;
mod traffic;

use maypole_cuda_emulator::testing;

/// The emulator's switches hold for the whole process: one test at a time.
static TURN: parking_lot::Mutex<()> = parking_lot::Mutex::new(());

/// The emulator, with three devices, which the driver is asked for once.
fn emulated() -> &'static testing::Emulator {
    let emulator = testing::load();
    emulator.set("DEVICES", "3");
    emulator
}
