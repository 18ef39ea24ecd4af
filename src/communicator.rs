//! The communicator.

use maypole_collectives::{DataType, Element, ReduceOp};

use crate::node::UniqueId;
use crate::{Collective, Config, Result};

/// What a dynamically typed call asks for; see [`Communicator::call`].
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Which collective.
    pub collective: Collective,
    /// Element type.
    pub dtype: DataType,
    /// Elements per block.
    pub count: usize,
    /// The operation, for collectives that reduce; ignored by the others.
    pub op: ReduceOp,
    /// The root, for collectives that have one; 0 otherwise.
    pub root: usize,
}

/// One rank's handle to a group of ranks.
pub struct Communicator {}

#[allow(unused_variables, missing_docs)]
impl Communicator {
    pub fn from_env() -> Result<Communicator> {
        unimplemented!()
    }
    pub fn from_env_with(config: Config) -> Result<Communicator> {
        unimplemented!()
    }
    pub fn from_id(id: &UniqueId, rank: usize, size: usize, config: Config) -> Result<Communicator> {
        unimplemented!()
    }
    /// n ranks as threads of this process
    pub fn threads(size: usize) -> Result<Vec<Communicator>> {
        unimplemented!()
    }
    pub fn threads_with(size: usize, config: Config) -> Result<Vec<Communicator>> {
        unimplemented!()
    }
    pub fn rank(&self) -> usize {
        unimplemented!()
    }
    pub fn size(&self) -> usize {
        unimplemented!()
    }

    /// input: input_blocks*count elements as bytes (empty where the rank passes none), output likewise
    pub fn call(&self, call: Call, input: &[u8], output: &mut [u8]) -> Result<()> {
        unimplemented!()
    }
    /// buffer: the larger of input and output on this rank; blocks as in Collective::in_place_block
    pub fn call_in_place(&self, call: Call, buffer: &mut [u8]) -> Result<()> {
        unimplemented!()
    }

    pub fn all_reduce<T: Element>(&self, input: &[T], output: &mut [T], op: ReduceOp) -> Result<()> {
        unimplemented!()
    }
    pub fn all_reduce_in_place<T: Element>(&self, buffer: &mut [T], op: ReduceOp) -> Result<()> {
        unimplemented!()
    }
    pub fn reduce<T: Element>(&self, input: &[T], output: &mut [T], op: ReduceOp, root: usize) -> Result<()> {
        unimplemented!()
    }
    pub fn broadcast<T: Element>(&self, buffer: &mut [T], root: usize) -> Result<()> {
        unimplemented!()
    }
    pub fn all_gather<T: Element>(&self, input: &[T], output: &mut [T]) -> Result<()> {
        unimplemented!()
    }
    pub fn reduce_scatter<T: Element>(&self, input: &[T], output: &mut [T], op: ReduceOp) -> Result<()> {
        unimplemented!()
    }
    pub fn all_to_all<T: Element>(&self, input: &[T], output: &mut [T]) -> Result<()> {
        unimplemented!()
    }
    pub fn gather<T: Element>(&self, input: &[T], output: &mut [T], root: usize) -> Result<()> {
        unimplemented!()
    }
    pub fn scatter<T: Element>(&self, input: &[T], output: &mut [T], root: usize) -> Result<()> {
        unimplemented!()
    }
    pub fn barrier(&self) -> Result<()> {
        unimplemented!()
    }
    pub fn send<T: Element>(&self, buffer: &[T], to: usize) -> Result<()> {
        unimplemented!()
    }
    pub fn recv<T: Element>(&self, buffer: &mut [T], from: usize) -> Result<()> {
        unimplemented!()
    }
    /// sends and receives at the same time; cannot deadlock
    pub fn send_recv<T: Element>(&self, send: &[T], to: usize, recv: &mut [T], from: usize) -> Result<()> {
        unimplemented!()
    }
    pub fn split(&self, color: Option<u32>, key: i64) -> Result<Option<Communicator>> {
        unimplemented!()
    }
    pub fn abort(&self, why: &str) {
        unimplemented!()
    }
}
