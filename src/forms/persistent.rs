//! The persistent form: the methods of [`Planner`] take the buffers, check and plan, and return what can be started.

use maypole_collectives::schedule::Collective;
use maypole_collectives::{Element, ReduceOp, collectives};

use super::{BARRIER, Extra, Method, NO_EXTRA, methods};
use crate::Blocks;
use crate::communicator::persistent::{Memory, Persistent};
use crate::communicator::planner::Planner;
use crate::error::Result;

macro_rules! planned {
    (apart $collective:ident $name:ident ($($arg:ident: $type:ty),*) $doc:literal) => {
        #[doc = concat!("See [`Communicator::", stringify!($name), "`](crate::Communicator::", stringify!($name), ").")]
        pub fn $name<T: Element>(
            &self,
            input: impl Into<Memory<T>>,
            output: impl Into<Memory<T>>,
            $($arg: $type,)*
        ) -> Result<Persistent<T>> {
            let extra = NO_EXTRA$(.$arg($arg))*;
            let method = self.method(Collective::$collective, extra);
            let (input, output) = (input.into(), output.into());
            // Where a rank gets nothing, the call has no output, whatever was passed.
            let outputs = if method.leaves_output() { 0 } else { output.len() };
            self.apart(method.apart::<T>(input.len(), outputs), input, (output, outputs))
        }
    };
    (in_place $collective:ident $name:ident ($($arg:ident: $type:ty),*) $doc:literal) => {
        #[doc = concat!("See [`Communicator::", stringify!($name), "`](crate::Communicator::", stringify!($name), ").")]
        pub fn $name<T: Element>(
            &self,
            buffer: impl Into<Memory<T>>,
            $($arg: $type,)*
        ) -> Result<Persistent<T>> {
            let extra = NO_EXTRA$(.$arg($arg))*;
            let method = self.method(Collective::$collective, extra);
            let buffer = buffer.into();
            self.in_place(method.in_place::<T>(buffer.len()), buffer)
        }
    };
    (output $collective:ident $name:ident ($($arg:ident: $type:ty),*) $doc:literal) => {
        #[doc = concat!("See [`Communicator::", stringify!($name), "`](crate::Communicator::", stringify!($name), ").")]
        pub fn $name<'a, T: Element>(
            &self,
            input: impl Into<Memory<T>>,
            output: impl Into<Memory<T>>,
            blocks: impl Into<Blocks<'a>>,
            $($arg: $type,)*
        ) -> Result<Persistent<T>> {
            let extra = NO_EXTRA$(.$arg($arg))*;
            let method = self.method(Collective::$collective, extra);
            let (input, output) = (input.into(), output.into());
            let own = &[input.len()];
            let blocks = method.blocks(blocks, &[]);
            self.apart_v(method.variable::<T>(), (input, Blocks::packed(own)), (output, blocks))
        }
    };
    (input $collective:ident $name:ident ($($arg:ident: $type:ty),*) $doc:literal) => {
        #[doc = concat!("See [`Communicator::", stringify!($name), "`](crate::Communicator::", stringify!($name), ").")]
        pub fn $name<'a, T: Element>(
            &self,
            input: impl Into<Memory<T>>,
            blocks: impl Into<Blocks<'a>>,
            output: impl Into<Memory<T>>,
            $($arg: $type,)*
        ) -> Result<Persistent<T>> {
            let extra = NO_EXTRA$(.$arg($arg))*;
            let method = self.method(Collective::$collective, extra);
            let (input, output) = (input.into(), output.into());
            let own = &[output.len()];
            let blocks = method.blocks(blocks, &[]);
            self.apart_v(method.variable::<T>(), (input, blocks), (output, Blocks::packed(own)))
        }
    };
    (both $collective:ident $name:ident ($($arg:ident: $type:ty),*) $doc:literal) => {
        #[doc = concat!("See [`Communicator::", stringify!($name), "`](crate::Communicator::", stringify!($name), ").")]
        pub fn $name<'a, 'b, T: Element>(
            &self,
            input: impl Into<Memory<T>>,
            sent: impl Into<Blocks<'a>>,
            output: impl Into<Memory<T>>,
            received: impl Into<Blocks<'b>>,
            $($arg: $type,)*
        ) -> Result<Persistent<T>> {
            let extra = NO_EXTRA$(.$arg($arg))*;
            let method = self.method(Collective::$collective, extra);
            let (input, output) = (input.into(), output.into());
            self.apart_v(method.variable::<T>(), (input, sent.into()), (output, received.into()))
        }
    };
    (buffer $collective:ident $name:ident ($($arg:ident: $type:ty),*) $doc:literal) => {
        #[doc = concat!("See [`Communicator::", stringify!($name), "`](crate::Communicator::", stringify!($name), ").")]
        pub fn $name<'a, T: Element>(
            &self,
            buffer: impl Into<Memory<T>>,
            blocks: impl Into<Blocks<'a>>,
            $($arg: $type,)*
        ) -> Result<Persistent<T>> {
            let extra = NO_EXTRA$(.$arg($arg))*;
            let method = self.method(Collective::$collective, extra);
            let buffer = buffer.into();
            let own = [buffer.len()];
            self.in_place_v(method.variable::<T>(), buffer, method.blocks(blocks, &own))
        }
    };
}

/// One method for each of the communicator's of the same name, with buffers (`Vec`s, boxed slices,
/// [`Registered`](crate::Registered) buffers) in place of slices. Counts and displacements are copied.
///
/// # Errors
/// [`Error::Argument`](crate::Error::Argument) as in the blocking call: no operation was made, and the communicator has
/// noticed nothing.
impl Planner<'_> {
    collectives!(methods, planned);

    /// See [`Communicator::barrier`](crate::Communicator::barrier).
    pub fn barrier(&self) -> Result<Persistent<u8>> {
        self.apart(BARRIER, Vec::new().into(), (Vec::new().into(), 0))
    }

    fn method(&self, collective: Collective, extra: Extra) -> Method {
        Method { collective, rank: self.comm.rank(), size: self.comm.size(), extra }
    }
}
