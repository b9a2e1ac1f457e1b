import asyncio, os, collections, time
import tests.integration.test_protocol as t
from hypothesis import settings, Phase
counts = collections.Counter()
for name in [n for n in dir(t.Protocol) if n.startswith('_') and asyncio.iscoroutinefunction(getattr(t.Protocol, n))]:
    def wrap(f, name):
        async def g(self, *a, **k):
            if not getattr(self,'ending',False) : counts[name]+=1
            if name=='_to_the_end': self.ending=True
            t0=time.perf_counter()
            r = await f(self,*a,**k)
            if name in('_check','_to_the_end','_empty'): counts['ms '+name]+=(time.perf_counter()-t0)*1000
            return r
        return g
    setattr(t.Protocol, name, wrap(getattr(t.Protocol, name), name))
ap=t.Protocol._is_mine
ow=t.Protocol._write
async def w(self, process, n):
    for hand,e,p in process.entries[:n]:
        if not self._is_mine(hand): counts['late write'+(' with outcomes' if e.outcomes else ' closing')]+=1
    return await ow(self,process,n)
t.Protocol._write=w
old=t.Protocol._on_the_wire
def otw(self, hand, group, ends):
    if not getattr(self,'ending',False):
      for row, end in zip(group, ends):
        counts['wire '+end]+=1
        if hand.batch.send.mails[row.position].puts: counts['wire again']+=1
    return old(self,hand,group,ends)
t.Protocol._on_the_wire=otw
small_pages = t.small_pages
import pytest
@pytest.mark.usefixtures("small_pages")
def test_probe(environment):
    try:
        t._drive(environment, settings(t.SHORT, max_examples=int(os.environ.get('N','60')), stateful_step_count=int(os.environ.get('S','50')), phases=[Phase.generate]))
    finally:
        for k,v in sorted(counts.items()): print(k, int(v))
