//! The collectives as methods, for every class that makes calls.

/// `#[pymethods]` for a class that is a [`Form`](crate::calls::Form): its own, and one for each collective.
macro_rules! forms {
    ($class:ty { $($own:tt)* }) => {
        #[pyo3::pymethods]
        impl $class {
            $($own)*

            /// Reduce over all ranks: `out` (or `x`, in place) becomes the combination of every rank's `x`.
            #[pyo3(signature = (x, op=None, out=None), text_signature = "($self, x, op='sum', out=None)")]
            fn all_reduce<'py>(
                &self, x: Object<'py>, op: Maybe<'py>, out: Maybe<'py>,
            ) -> PyResult<Object<'py>> {
                calls::plain(self, x.py(), Collective::AllReduce, (Some(x), out), op, 0)
            }

            /// Reduce to one rank: as all_reduce, but only rank `root` gets the result (others: None).
            #[pyo3(signature = (x, op=None, root=0, out=None), text_signature = "($self, x, op='sum', root=0, out=None)")]
            fn reduce<'py>(
                &self, x: Object<'py>, op: Maybe<'py>, root: i64, out: Maybe<'py>,
            ) -> PyResult<Object<'py>> {
                calls::plain(self, x.py(), Collective::Reduce, (Some(x), out), op, root)
            }

            /// Every rank's `x` becomes rank `root`'s.
            #[pyo3(signature = (x, root=0), text_signature = "($self, x, root=0)")]
            fn broadcast<'py>(&self, x: Object<'py>, root: i64) -> PyResult<Object<'py>> {
                calls::plain(self, x.py(), Collective::Broadcast, (Some(x), None), None, root)
            }

            /// `out` becomes all ranks' `x`, one after the other. Without `out`, `x` is that array, and has this rank's
            /// own part at its place.
            #[pyo3(signature = (x, out=None), text_signature = "($self, x, out=None)")]
            fn all_gather<'py>(&self, x: Object<'py>, out: Maybe<'py>) -> PyResult<Object<'py>> {
                calls::plain(self, x.py(), Collective::AllGather, (Some(x), out), None, 0)
            }

            /// `x` has as many equal parts as there are ranks; `out` becomes the combination of all ranks' part number
            /// `rank`. Without `out` it replaces that part of `x`, and the others are undefined afterwards.
            #[pyo3(signature = (x, op=None, out=None), text_signature = "($self, x, op='sum', out=None)")]
            fn reduce_scatter<'py>(
                &self, x: Object<'py>, op: Maybe<'py>, out: Maybe<'py>,
            ) -> PyResult<Object<'py>> {
                calls::plain(self, x.py(), Collective::ReduceScatter, (Some(x), out), op, 0)
            }

            /// Both arrays have as many equal parts as there are ranks; part s of `out` becomes part `rank` of rank s's
            /// `x`. Without `out`, `x` is replaced.
            #[pyo3(signature = (x, out=None), text_signature = "($self, x, out=None)")]
            fn all_to_all<'py>(&self, x: Object<'py>, out: Maybe<'py>) -> PyResult<Object<'py>> {
                calls::plain(self, x.py(), Collective::AllToAll, (Some(x), out), None, 0)
            }

            /// On rank `root`, `out` becomes all ranks' `x`, one after the other; without `out` there, `x` is that
            /// array. The other ranks get None.
            #[pyo3(signature = (x, root=0, out=None), text_signature = "($self, x, root=0, out=None)")]
            fn gather<'py>(&self, x: Object<'py>, root: i64, out: Maybe<'py>) -> PyResult<Object<'py>> {
                calls::plain(self, x.py(), Collective::Gather, (Some(x), out), None, root)
            }

            /// On rank `root`, `x` has as many equal parts as there are ranks (elsewhere it may be None); `out` becomes
            /// part `rank` of it. Without `out`, `x` of the other ranks becomes their part.
            #[pyo3(signature = (x=None, root=0, out=None), text_signature = "($self, x=None, root=0, out=None)")]
            fn scatter<'py>(
                &self, py: Python<'py>, x: Maybe<'py>, root: i64, out: Maybe<'py>,
            ) -> PyResult<Object<'py>> {
                calls::plain(self, py, Collective::Scatter, (x, out), None, root)
            }

            /// `out` (or `x`, in place) becomes the combination of `x` of ranks 0 to this one.
            #[pyo3(signature = (x, op=None, out=None), text_signature = "($self, x, op='sum', out=None)")]
            fn scan<'py>(&self, x: Object<'py>, op: Maybe<'py>, out: Maybe<'py>) -> PyResult<Object<'py>> {
                calls::plain(self, x.py(), Collective::Scan, (Some(x), out), op, 0)
            }

            /// `out` (or `x`, in place) becomes the combination of `x` of the ranks before this one; rank 0 gets None,
            /// and its arrays stay as they are.
            #[pyo3(signature = (x, op=None, out=None), text_signature = "($self, x, op='sum', out=None)")]
            fn exclusive_scan<'py>(
                &self, x: Object<'py>, op: Maybe<'py>, out: Maybe<'py>,
            ) -> PyResult<Object<'py>> {
                calls::plain(self, x.py(), Collective::ExclusiveScan, (Some(x), out), op, 0)
            }

            /// Nobody is done before everybody has come.
            fn barrier<'py>(&self, py: Python<'py>) -> PyResult<Object<'py>> {
                calls::plain(self, py, Collective::Barrier, (None, None), None, 0)
            }

            /// all_gather with parts of `counts[r]` elements, from `displacements[r]` on or one after the other.
            #[pyo3(
                signature = (x, counts, out=None, displacements=None),
                text_signature = "($self, x, counts, out=None, displacements=None)"
            )]
            fn all_gather_v<'py>(
                &self, x: Object<'py>, counts: Object<'py>, out: Maybe<'py>, displacements: Maybe<'py>,
            ) -> PyResult<Object<'py>> {
                let py = x.py();
                let arguments = Arguments { counts: Some(counts), displacements, ..Arguments::of(Some(x), out) };
                variable::blocks(self, py, Collective::AllGather, arguments, None, 0)
            }

            /// reduce_scatter with parts of `counts[r]` elements of `x`.
            #[pyo3(
                signature = (x, counts, op=None, out=None, displacements=None),
                text_signature = "($self, x, counts, op='sum', out=None, displacements=None)"
            )]
            fn reduce_scatter_v<'py>(
                &self, x: Object<'py>, counts: Object<'py>, op: Maybe<'py>, out: Maybe<'py>, displacements: Maybe<'py>,
            ) -> PyResult<Object<'py>> {
                let py = x.py();
                let arguments = Arguments { counts: Some(counts), displacements, ..Arguments::of(Some(x), out) };
                variable::blocks(self, py, Collective::ReduceScatter, arguments, op, 0)
            }

            /// all_to_all with parts of `counts[r]` elements of `x` and `out_counts[r]` of `out`. Without `out` both
            /// are the same, and `x` is replaced.
            #[pyo3(
                signature = (x, counts, out=None, out_counts=None, displacements=None, out_displacements=None),
                text_signature =
                    "($self, x, counts, out=None, out_counts=None, displacements=None, out_displacements=None)"
            )]
            fn all_to_all_v<'py>(
                &self, x: Object<'py>, counts: Object<'py>, out: Maybe<'py>, out_counts: Maybe<'py>,
                displacements: Maybe<'py>, out_displacements: Maybe<'py>,
            ) -> PyResult<Object<'py>> {
                let py = x.py();
                let counts = Some(counts);
                let arguments = Arguments { x: Some(x), out, counts, displacements, out_counts, out_displacements };
                variable::blocks(self, py, Collective::AllToAll, arguments, None, 0)
            }

            /// gather with parts of `counts[r]` elements, which only rank `root` passes.
            #[pyo3(
                signature = (x, counts=None, root=0, out=None, displacements=None),
                text_signature = "($self, x, counts=None, root=0, out=None, displacements=None)"
            )]
            fn gather_v<'py>(
                &self, x: Object<'py>, counts: Maybe<'py>, root: i64, out: Maybe<'py>, displacements: Maybe<'py>,
            ) -> PyResult<Object<'py>> {
                let py = x.py();
                let arguments = Arguments { counts, displacements, ..Arguments::of(Some(x), out) };
                variable::blocks(self, py, Collective::Gather, arguments, None, root)
            }

            /// scatter with parts of `counts[r]` elements, which only rank `root` passes.
            #[pyo3(
                signature = (x=None, counts=None, root=0, out=None, displacements=None),
                text_signature = "($self, x=None, counts=None, root=0, out=None, displacements=None)"
            )]
            fn scatter_v<'py>(
                &self, py: Python<'py>, x: Maybe<'py>, counts: Maybe<'py>, root: i64, out: Maybe<'py>,
                displacements: Maybe<'py>,
            ) -> PyResult<Object<'py>> {
                let arguments = Arguments { counts, displacements, ..Arguments::of(x, out) };
                variable::blocks(self, py, Collective::Scatter, arguments, None, root)
            }

            /// Send `x` to rank `to`, which must receive as many elements of the same type with the same tag.
            #[pyo3(signature = (x, to, tag=0), text_signature = "($self, x, to, tag=0)")]
            fn send<'py>(&self, x: Object<'py>, to: i64, tag: i64) -> PyResult<Object<'py>> {
                messages::one(self, x, ("to", to), tag)
            }

            /// Receive `x` from rank `source`.
            #[pyo3(signature = (x, source, tag=0), text_signature = "($self, x, source, tag=0)")]
            fn recv<'py>(&self, x: Object<'py>, source: i64, tag: i64) -> PyResult<Object<'py>> {
                messages::one(self, x, ("source", source), tag)
            }

            /// Send `x` to rank `to` and receive `out` from rank `source` at the same time.
            #[pyo3(signature = (x, to, out, source, tag=0), text_signature = "($self, x, to, out, source, tag=0)")]
            fn send_recv<'py>(
                &self, x: Object<'py>, to: i64, out: Object<'py>, source: i64, tag: i64,
            ) -> PyResult<Object<'py>> {
                messages::both(self, (x, to), (out, source), tag)
            }
        }
    };
}

pub(crate) use forms;
