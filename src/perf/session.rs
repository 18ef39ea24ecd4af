//! A whole run on one rank: every type, operation, root and size, printed row by row by rank 0.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use super::buffer::Buffer;
use super::cuda::nccl::Nccl;
use super::cuda::{DeviceInfo, Gpu};
use super::flags::{Device, Plan};
use super::measure::{Carrier, Effort, measure};
use super::operation::{NamedOp, Operation};
use super::report::{Figures, RankInfo, Report, ResultRow, figures, now, parameters, timestamp};
use super::row::{Buffers, Form, Row, Traffic};
use crate::{Collective, Communicator, DataType, Error, Result};

/// Run the plan on this rank; every rank of `comm` must do so. Rank 0 writes the table to `out` and the JSON file.
/// Returns whether every checked element was right, on all ranks.
///
/// # Errors [`Error::Setting`] if the root is out of range; the communicator's errors; [`Error::System`] if a file
/// cannot be written or memory is short, in which case the other ranks are told.
pub fn run(plan: &Plan, comm: &Communicator, out: &mut dyn Write) -> Result<bool> {
    let world = comm;
    let color = plan.environment.split.map(|split| split.color(world.rank()));
    // Each part runs all of it, at the same time; the table is that of rank 0's.
    let part = color.map(|color| world.split(Some(color), 0)).transpose()?.flatten();
    let comm = part.as_ref().unwrap_or(world);
    let roots = plan.roots(comm.size())?;
    let result = Session::start(plan, (world, comm), out).and_then(|mut session| session.cycles(&roots));
    if let Err(error @ Error::System { .. }) = &result {
        // Only this rank knows; the others would wait for it until their deadline. They are told why, since a launcher may
        // end this rank for another's failure before it has said so itself.
        comm.abort(&error.to_string());
    }
    if result.is_ok() {
        // A launcher ends all ranks when one ends as a failure, which a slow row is too: not before the table stands.
        world.barrier()?;
    }
    result
}

struct Session<'a> {
    plan: &'a Plan,
    comm: &'a Communicator,
    /// The table's reader; rank 0 only, and until it leaves.
    out: Option<&'a mut dyn Write>,
    /// The reader has left.
    unread: bool,
    json: Option<File>,
    /// When it was written last.
    written: Instant,
    report: Report,
    buffers: Buffers,
    effort: Effort,
    /// The communicator of NCCL's, where that is what is measured. Dropped before the device.
    nccl: Option<Nccl>,
    /// This rank's device, where buffers are in its memory.
    gpu: Option<Gpu>,
    /// How the latest row was run.
    how: String,
    /// The next unused seed; the same on all ranks.
    seed: u64,
}

impl<'a> Session<'a> {
    fn start(
        plan: &'a Plan,
        (world, comm): (&'a Communicator, &'a Communicator),
        out: &'a mut dyn Write,
    ) -> Result<Session<'a>> {
        let leader = world.rank() == 0;
        let json = match &plan.flags.json {
            Some(path) if leader => Some(
                File::create(path).map_err(|e| Error::system(format!("creating {} (--json)", path.display()), e))?,
            ),
            _ => None,
        };
        let largest = if plan.operation.is_barrier() { 0 } else { plan.flags.max_bytes };
        let gpu = plan.flags.device == Device::Cuda;
        let gpu = gpu.then(|| Gpu::of(world, plan.environment.first_device)).transpose()?;
        let nccl = match (&plan.nccl, &gpu) {
            (Some(library), Some(gpu)) => Some(gpu.within(|| Nccl::new(library, comm))?),
            _ => None,
        };
        let registered = plan.flags.registered > 0;
        if let Some(gpu) = gpu.as_ref().filter(|_| nccl.is_none() || registered) {
            // Messages need it, and so do registered buffers.
            comm.attach(&gpu.context)?;
        }
        let buffer = || match &gpu {
            Some(gpu) => Buffer::on_device(comm, gpu, largest, registered),
            None if registered => Buffer::registered(comm, largest),
            None => Buffer::new(largest),
        };
        let buffers = Buffers { input: buffer()?, output: buffer()? };
        let device = gpu.as_ref().map(Gpu::info);
        let library = nccl.as_ref().map_or("maypole".to_string(), |nccl| format!("nccl {}", nccl.version()));
        let report = Report::new(plan, library, introduce(comm, device.as_ref())?, device);
        let flags = &plan.flags;
        let effort = Effort {
            iters: flags.iters,
            warmup: flags.warmup_iters,
            aggregate: flags.agg_iters,
            check: if plan.operation.is_barrier() { 0 } else { flags.check },
            average: flags.average,
        };
        let mut session = Session {
            plan,
            comm,
            out: leader.then_some(out),
            unread: false,
            json,
            written: Instant::now(),
            report,
            buffers,
            effort,
            nccl,
            gpu,
            how: String::new(),
            seed: 0,
        };
        let header = session.report.header(plan);
        session.print(&header)?;
        Ok(session)
    }

    fn cycles(&mut self, roots: &[usize]) -> Result<bool> {
        let cycles = self.plan.flags.run_cycles;
        let mut done = 0;
        while cycles == 0 || done < cycles {
            if cycles != 1 {
                self.print(&format!("# Cycle {}\n", done + 1))?;
            }
            for (dtype, op) in self.plan.combinations() {
                for &root in roots {
                    for size in self.plan.sizes() {
                        if !self.is_wanted()? {
                            return Ok(self.report.out_of_bounds.okay);
                        }
                        self.row(size, dtype, op, root)?;
                    }
                }
            }
            self.write_json()?;
            done += 1;
        }
        let footer = self.report.footer(self.plan);
        self.print(&footer)?;
        Ok(self.report.out_of_bounds.okay && self.report.is_fast_enough(self.plan).unwrap_or(true))
    }

    fn row(&mut self, size: usize, dtype: DataType, op: Option<NamedOp>, root: usize) -> Result<()> {
        let operation = self.plan.operation;
        let (rank, ranks) = (self.comm.rank(), self.comm.size());
        let count = operation.count(size, dtype, ranks);
        let row = Row { operation, dtype, op, root, count, rank, ranks };
        let size = operation.shown_size(count, dtype, ranks);
        if let (Some(collective), None) = (operation.collective(), &self.nccl) {
            let variable = matches!(operation, Operation::Variable(_)).then(|| size / dtype.size());
            let call = row.call(collective);
            let how = match &self.gpu {
                Some(gpu) => self.comm.on(&gpu.stream).describe(&call, variable)?,
                None => self.comm.describe(&call, variable)?,
            };
            if how != self.how {
                self.print(&format!("# {how}\n"))?;
                self.how = how;
            }
        }
        let shown_root = if operation.is_rooted() { root as i64 } else { -1 };
        self.print(&parameters(size, count, dtype, op, shown_root))?;
        let out_of_place = self.form(&row, size, Form::OutOfPlace)?;
        self.print(&figures(Some(&out_of_place)))?;
        // Of sends and receives, which is what an all-to-all is there, NCCL takes none that overlap.
        let overlaps = self.nccl.is_some() && operation == Operation::Collective(Collective::AllToAll);
        let in_place = operation.has_in_place() && !overlaps;
        let in_place = in_place.then(|| self.form(&row, size, Form::InPlace)).transpose()?;
        let when = if self.plan.flags.timestamps > 0 { timestamp(now()) } else { String::new() };
        self.print(&(figures(in_place.as_ref()) + &when + "\n"))?;
        let redop = op.map_or("none", NamedOp::name);
        self.report.push(ResultRow {
            size,
            count,
            dtype: dtype.name(),
            redop,
            root: shown_root,
            out_of_place,
            in_place,
        });
        // Who ends a run that takes too long keeps its rows.
        if self.written.elapsed() >= Duration::from_secs(1) { self.write_json() } else { Ok(()) }
    }

    fn form(&mut self, row: &Row, size: usize, form: Form) -> Result<Figures> {
        // In place an all-to-all copies its input first, into memory of its own.
        let lends = form == Form::OutOfPlace || row.operation.collective() != Some(Collective::AllToAll);
        let carrier = match (&self.gpu, &self.nccl) {
            (Some(gpu), Some(nccl)) => Carrier::Nccl(gpu, nccl),
            (Some(gpu), None) => Carrier::Device(gpu, self.buffers.are_shared() && lends),
            (None, _) => Carrier::Host,
        };
        let measured = measure(self.comm, carrier, row, form, self.effort, self.seed, &mut self.buffers)?;
        self.seed += 1 + self.effort.check as u64;
        let traffic = self.gpu.is_some().then(|| busiest(&self.report.ranks, row, form));
        Ok(Figures::new(row, size, measured, traffic))
    }

    /// Write to the reader, at once, so that a long run shows how far it is. One that leaves, as `head` does, has what it
    /// wanted.
    fn print(&mut self, text: &str) -> Result<()> {
        let Some(out) = &mut self.out else { return Ok(()) };
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => (self.out, self.unread) = (None, true),
            written => written.map_err(|e| Error::system("writing the table", e))?,
        }
        Ok(())
    }

    /// Whether anybody wants more rows, as all ranks agree: the table's reader, or who asked for the JSON file. Other tools
    /// die by SIGPIPE where their reader leaves; a rank that did would take the others down as a failure.
    fn is_wanted(&self) -> Result<bool> {
        let mut wanted = [u8::from(!self.unread || self.json.is_some())];
        self.comm.broadcast(&mut wanted, 0)?;
        Ok(wanted == [1])
    }

    /// Write the file anew, with every row so far.
    fn write_json(&mut self) -> Result<()> {
        self.written = Instant::now();
        let Some(file) = &mut self.json else { return Ok(()) };
        let write = |file: &mut File, report: &Report| -> io::Result<()> {
            io::Seek::rewind(file)?;
            file.set_len(0)?;
            serde_json::to_writer_pretty(&mut *file, report)?;
            file.write_all(b"\n")
        };
        write(file, &self.report).map_err(|e| Error::system("writing the JSON file (--json)", e))
    }
}

/// What the device that has most to do must read and write for a row.
fn busiest(ranks: &[RankInfo], row: &Row, form: Form) -> Traffic {
    let mut devices: BTreeMap<(&str, Option<&str>), Traffic> = BTreeMap::new();
    for rank in ranks {
        let part = devices.entry((&rank.host, rank.device.as_deref())).or_default();
        *part = *part + Row { rank: rank.rank, ..*row }.traffic(form);
    }
    devices.into_values().max_by_key(|traffic| traffic.total()).unwrap_or_default()
}

/// Where every rank runs, and on which device.
fn introduce(comm: &Communicator, device: Option<&DeviceInfo>) -> Result<Vec<RankInfo>> {
    const RECORD: usize = 256;
    const DEVICE: usize = 132;
    let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut mine = [0u8; RECORD];
    mine[..4].copy_from_slice(&std::process::id().to_le_bytes());
    let mut put = |at: usize, end: usize, text: &str| {
        let length = text.len().min(end - at);
        mine[at..at + length].copy_from_slice(&text.as_bytes()[..length]);
    };
    put(4, DEVICE, &host);
    put(DEVICE, RECORD, device.map_or("", |device| &device.uuid));
    let mut all = vec![0u8; RECORD * comm.size()];
    comm.all_gather(&mine, &mut all)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_string();
    let ranks = all.chunks_exact(RECORD).enumerate().map(|(rank, record)| RankInfo {
        rank,
        host: text(&record[4..DEVICE]),
        pid: u32::from_le_bytes(record[..4].try_into().expect("4 bytes")),
        device: Some(text(&record[DEVICE..])).filter(|uuid| !uuid.is_empty()),
    });
    Ok(ranks.collect())
}
