//! The blocking form: the methods of [`Communicator`] return when this rank's part is done.

use bytemuck::{cast_slice, cast_slice_mut};
use maypole_collectives::schedule::Collective;
use maypole_collectives::{Element, ReduceOp, collectives};

use super::{BARRIER, Extra, Method, NO_EXTRA, methods};
use crate::error::Result;
use crate::{Blocks, Communicator};

macro_rules! blocking {
    (apart $collective:ident $name:ident ($($arg:ident: $type:ty),*) $doc:literal) => {
        #[doc = $doc]
        pub fn $name<T: Element>(
            &self,
            input: &[T],
            output: &mut [T],
            $($arg: $type,)*
        ) -> Result<()> {
            let extra = NO_EXTRA$(.$arg($arg))*;
            let method = self.method(Collective::$collective, extra);
            let output = if method.leaves_output() { &mut [] } else { output };
            let call = method.apart::<T>(input.len(), output.len());
            self.call(call, cast_slice(input), cast_slice_mut(output))
        }
    };
    (in_place $collective:ident $name:ident ($($arg:ident: $type:ty),*) $doc:literal) => {
        #[doc = $doc]
        pub fn $name<T: Element>(
            &self,
            buffer: &mut [T],
            $($arg: $type,)*
        ) -> Result<()> {
            let extra = NO_EXTRA$(.$arg($arg))*;
            let method = self.method(Collective::$collective, extra);
            self.call_in_place(method.in_place::<T>(buffer.len()), cast_slice_mut(buffer))
        }
    };
    (output $collective:ident $name:ident ($($arg:ident: $type:ty),*) $doc:literal) => {
        #[doc = $doc]
        pub fn $name<'a, T: Element>(
            &self,
            input: &[T],
            output: &mut [T],
            blocks: impl Into<Blocks<'a>>,
            $($arg: $type,)*
        ) -> Result<()> {
            let extra = NO_EXTRA$(.$arg($arg))*;
            let method = self.method(Collective::$collective, extra);
            let own = &[input.len()];
            let blocks = method.blocks(blocks, &[]);
            let call = method.variable::<T>();
            self.call_v(call, (cast_slice(input), Blocks::packed(own)), (cast_slice_mut(output), blocks))
        }
    };
    (input $collective:ident $name:ident ($($arg:ident: $type:ty),*) $doc:literal) => {
        #[doc = $doc]
        pub fn $name<'a, T: Element>(
            &self,
            input: &[T],
            blocks: impl Into<Blocks<'a>>,
            output: &mut [T],
            $($arg: $type,)*
        ) -> Result<()> {
            let extra = NO_EXTRA$(.$arg($arg))*;
            let method = self.method(Collective::$collective, extra);
            let own = &[output.len()];
            let blocks = method.blocks(blocks, &[]);
            let call = method.variable::<T>();
            self.call_v(call, (cast_slice(input), blocks), (cast_slice_mut(output), Blocks::packed(own)))
        }
    };
    (both $collective:ident $name:ident ($($arg:ident: $type:ty),*) $doc:literal) => {
        #[doc = $doc]
        pub fn $name<'a, 'b, T: Element>(
            &self,
            input: &[T],
            sent: impl Into<Blocks<'a>>,
            output: &mut [T],
            received: impl Into<Blocks<'b>>,
            $($arg: $type,)*
        ) -> Result<()> {
            let extra = NO_EXTRA$(.$arg($arg))*;
            let method = self.method(Collective::$collective, extra);
            let call = method.variable::<T>();
            self.call_v(call, (cast_slice(input), sent.into()), (cast_slice_mut(output), received.into()))
        }
    };
    (buffer $collective:ident $name:ident ($($arg:ident: $type:ty),*) $doc:literal) => {
        #[doc = $doc]
        pub fn $name<'a, T: Element>(
            &self,
            buffer: &mut [T],
            blocks: impl Into<Blocks<'a>>,
            $($arg: $type,)*
        ) -> Result<()> {
            let extra = NO_EXTRA$(.$arg($arg))*;
            let method = self.method(Collective::$collective, extra);
            let own = [buffer.len()];
            self.call_v_in_place(method.variable::<T>(), cast_slice_mut(buffer), method.blocks(blocks, &own))
        }
    };
}

/// The collectives on slices.
///
/// What every method has in common: it blocks until this rank's part is done; the buffers are borrowed until it
/// returns; counts and displacements are elements; [`Error::Argument`](crate::Error::Argument) means that nothing was
/// started and nothing touched, [`Error::Failed`](crate::Error::Failed) that the communicator has failed on every rank,
/// and the output is then undefined. So it is where a user's operation panics: the panic is caught, and every rank is
/// told of it. Every rank of the communicator must make the same call.
///
/// Wildly uneven counts are fine: a block costs what its own length asks, and a rank with nothing to send is waited for
/// only until it has called.
impl Communicator {
    collectives!(methods, blocking);

    /// Returns once every rank has called it.
    pub fn barrier(&self) -> Result<()> {
        self.call(BARRIER, &[], &mut [])
    }

    #[inline]
    fn method(&self, collective: Collective, extra: Extra) -> Method {
        Method { collective, rank: self.rank(), size: self.size(), extra }
    }
}
