// A caller in Node: asks a server of the tests by the contract alone, and prints what it was answered as JSON.
// node client.js PROTO ADDRESS USER ITEM,ITEM,… TS
const grpc = require('@grpc/grpc-js'), loader = require('@grpc/proto-loader')
const [proto, address, user, items, ts] = process.argv.slice(2)
const read = { includeDirs: [proto], keepCase: true, defaults: true, longs: Number }
const { pairlift } = grpc.loadPackageDefinition(loader.loadSync('pairlift/v1/ranking.proto', read))
const client = new pairlift.v1.RankingService(address, grpc.credentials.createInsecure())

const ask = (method, message, milliseconds = 20000) => new Promise((resolve) => {
  const answered = (error, answer) => resolve(error ? { code: grpc.status[error.code], details: error.details } : answer)
  client[method](message, { deadline: Date.now() + milliseconds }, answered)
})

const record = (batch) => new Promise((resolve, reject) => {
  const stream = client.RecordEvents(), outcomes = []
  stream.on('data', (outcome) => outcomes.push(outcome)).on('error', reject).on('end', () => resolve(outcomes))
  stream.write(batch)
  stream.write(batch) // again: it counts once
  stream.end()
})

const main = async () => {
  const integers = { values: items.split(',').map(Number) }, id = { integer: Number(user) }
  const ranked = await ask('Rank', { user: id, items: { integers }, context: { surface: 'feed' } })
  const listed = await ask('Recommend', { user: id, k: 5 })
  const wrong = await ask('Rank', { user: { text: 'who' }, items: { integers } })
  const late = await ask('Rank', { user: id, items: { integers } }, 0)
  const one = { integers: { values: [integers.values[0]] } }
  const feedback = [{ name: 'play', numbers: [0.9] }]
  const batch = { event_ids: { texts: { values: ['n1'] } }, users: { integers: { values: [id.integer] } }, items: one, ts: [Number(ts)], feedback }
  console.log(JSON.stringify({
    rank: { items: ranked.items.integers.values, scores: ranked.scores, indexes: ranked.indexes },
    recommend: { items: listed.items.integers.values, scores: listed.scores },
    wrong, late: late.code, recorded: (await record(batch)).map((o) => [o.recorded, o.duplicates, o.reasons]),
  }))
  client.close()
}
main()
