//! The asynchronous form: the methods of [`Start`] return a [`Request`] once the operation is queued.

use maypole_collectives::schedule::Collective;
use maypole_collectives::{Element, ReduceOp, collectives};

use super::{BARRIER, Extra, Method, NO_EXTRA, methods};
use crate::Blocks;
use crate::communicator::request::{Request, Start};
use crate::error::Result;

macro_rules! started {
    (apart $collective:ident $name:ident ($($arg:ident: $type:ty),*) $doc:literal) => {
        #[doc = concat!("See [`Communicator::", stringify!($name), "`](crate::Communicator::", stringify!($name), ").")]
        pub fn $name<T: Element>(
            &self,
            input: &'env [T],
            output: &'env mut [T],
            $($arg: $type,)*
        ) -> Result<Request<'env, T>> {
            let extra = NO_EXTRA$(.$arg($arg))*;
            let method = self.method(Collective::$collective, extra);
            let output = if method.leaves_output() { &mut [] } else { output };
            self.apart(method.apart::<T>(input.len(), output.len()), input, output)
        }
    };
    (in_place $collective:ident $name:ident ($($arg:ident: $type:ty),*) $doc:literal) => {
        #[doc = concat!("See [`Communicator::", stringify!($name), "`](crate::Communicator::", stringify!($name), ").")]
        pub fn $name<T: Element>(
            &self,
            buffer: &'env mut [T],
            $($arg: $type,)*
        ) -> Result<Request<'env, T>> {
            let extra = NO_EXTRA$(.$arg($arg))*;
            let method = self.method(Collective::$collective, extra);
            self.in_place(method.in_place::<T>(buffer.len()), buffer)
        }
    };
    (output $collective:ident $name:ident ($($arg:ident: $type:ty),*) $doc:literal) => {
        #[doc = concat!("See [`Communicator::", stringify!($name), "`](crate::Communicator::", stringify!($name), ").")]
        pub fn $name<'a, T: Element>(
            &self,
            input: &'env [T],
            output: &'env mut [T],
            blocks: impl Into<Blocks<'a>>,
            $($arg: $type,)*
        ) -> Result<Request<'env, T>> {
            let extra = NO_EXTRA$(.$arg($arg))*;
            let method = self.method(Collective::$collective, extra);
            let own = &[input.len()];
            let blocks = method.blocks(blocks, &[]);
            self.apart_v(method.variable::<T>(), (input, Blocks::packed(own)), (output, blocks))
        }
    };
    (input $collective:ident $name:ident ($($arg:ident: $type:ty),*) $doc:literal) => {
        #[doc = concat!("See [`Communicator::", stringify!($name), "`](crate::Communicator::", stringify!($name), ").")]
        pub fn $name<'a, T: Element>(
            &self,
            input: &'env [T],
            blocks: impl Into<Blocks<'a>>,
            output: &'env mut [T],
            $($arg: $type,)*
        ) -> Result<Request<'env, T>> {
            let extra = NO_EXTRA$(.$arg($arg))*;
            let method = self.method(Collective::$collective, extra);
            let own = &[output.len()];
            let blocks = method.blocks(blocks, &[]);
            self.apart_v(method.variable::<T>(), (input, blocks), (output, Blocks::packed(own)))
        }
    };
    (both $collective:ident $name:ident ($($arg:ident: $type:ty),*) $doc:literal) => {
        #[doc = concat!("See [`Communicator::", stringify!($name), "`](crate::Communicator::", stringify!($name), ").")]
        pub fn $name<'a, 'b, T: Element>(
            &self,
            input: &'env [T],
            sent: impl Into<Blocks<'a>>,
            output: &'env mut [T],
            received: impl Into<Blocks<'b>>,
            $($arg: $type,)*
        ) -> Result<Request<'env, T>> {
            let extra = NO_EXTRA$(.$arg($arg))*;
            let method = self.method(Collective::$collective, extra);
            self.apart_v(method.variable::<T>(), (input, sent.into()), (output, received.into()))
        }
    };
    (buffer $collective:ident $name:ident ($($arg:ident: $type:ty),*) $doc:literal) => {
        #[doc = concat!("See [`Communicator::", stringify!($name), "`](crate::Communicator::", stringify!($name), ").")]
        pub fn $name<'a, T: Element>(
            &self,
            buffer: &'env mut [T],
            blocks: impl Into<Blocks<'a>>,
            $($arg: $type,)*
        ) -> Result<Request<'env, T>> {
            let extra = NO_EXTRA$(.$arg($arg))*;
            let method = self.method(Collective::$collective, extra);
            let own = [buffer.len()];
            self.in_place_v(method.variable::<T>(), buffer, method.blocks(blocks, &own))
        }
    };
}

/// One method for each of the communicator's of the same name. Counts and displacements are copied at the call.
impl<'env> Start<'_, 'env> {
    collectives!(methods, started);

    /// See [`Communicator::barrier`](crate::Communicator::barrier).
    pub fn barrier(&self) -> Result<Request<'env, u8>> {
        self.apart(BARRIER, &[], &mut [])
    }

    fn method(&self, collective: Collective, extra: Extra) -> Method {
        Method { collective, rank: self.rank(), size: self.size(), extra }
    }
}
