// Counts primes with a sieve: work for the processor and the memory, and nothing else.
const limit = Number(process.argv[2] ?? 1_000_000);
if (!Number.isInteger(limit) || limit < 2) {
  console.error(`usage: primes.js [LIMIT], not ${process.argv[2]}`);
  process.exit(2);
}

const composite = new Uint8Array(limit + 1);
let count = 0;
let last = 0;
for (let n = 2; n <= limit; n++) {
  if (composite[n]) continue;
  count++;
  last = n;
  for (let multiple = n * n; multiple <= limit; multiple += n) composite[multiple] = 1;
}
console.log(`${count} primes up to ${limit}, the last is ${last}`);
