// The pattern that Go services use today, for the rows beside Forebay: a channel that drops when it
// is full, a goroutine behind it, and confluent-kafka-go (librdkafka) with batches of 500 ms or
// 20,000 messages.
//
// The Rust benches start it (FOREBAY_BENCH_GO), give it the words that their own child process gets,
// and read the same lines from it: see benches/outage/child.rs. By hand, against any broker:
//
//	peers child go HOST:PORT TOPIC - PAGE_FILE RATE 0 HEALTHY_S STOPPED_S AFTER_S
//
// CLIENT is "pacer alone" for a run that sends nothing; anything else is the pattern.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
)

const (
	threads      = 2
	valueBytes   = 100
	channelSlots = 100_000
	pageBytes    = 4096
	begunWord    = 7
	drainLimit   = 120 * time.Second
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func number(text string) int64 {
	n, err := strconv.ParseInt(text, 10, 64)
	must(err)
	return n
}

// page is shared with the bench and survives a SIGKILL: per source, how many records were accepted.
type page []byte

func openPage(path string) page {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	must(err)
	must(file.Truncate(pageBytes))
	bytes, err := syscall.Mmap(int(file.Fd()), 0, pageBytes, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	must(err)
	return bytes
}

func (p page) word(at int) *uint64 {
	return (*uint64)(unsafe.Pointer(&p[at*64]))
}

// client is the channel, the goroutine and the producer.
type client struct {
	queue     chan []byte
	producer  *kafka.Producer
	taken     atomic.Uint64
	delivered atomic.Uint64
}

func newClient(brokers, topic string) *client {
	producer, err := kafka.NewProducer(&kafka.ConfigMap{
		"bootstrap.servers":  brokers,
		"enable.idempotence": true,
		"acks":               "all",
		"linger.ms":          500,
		"batch.num.messages": 20_000,
	})
	must(err)
	c := &client{queue: make(chan []byte, channelSlots), producer: producer}
	go func() {
		for event := range producer.Events() {
			if message, ok := event.(*kafka.Message); ok && message.TopicPartition.Error == nil {
				c.delivered.Add(1)
			}
		}
	}()
	go func() {
		for value := range c.queue {
			message := kafka.Message{
				TopicPartition: kafka.TopicPartition{Topic: &topic, Partition: kafka.PartitionAny},
				Value:          value,
			}
			for producer.Produce(&message, nil) != nil {
				time.Sleep(time.Millisecond)
			}
			c.taken.Add(1)
		}
	}()
	// Until the topic is known, so that the schedule begins as it does for the others.
	_, err = producer.GetMetadata(&topic, false, 30_000)
	must(err)
	return c
}

// send copies the value, as a handler whose buffer is used again must.
func (c *client) send(value []byte) bool {
	select {
	case c.queue <- append([]byte(nil), value...):
		return true
	default:
		return false
	}
}

func (c *client) flush(accepted uint64) {
	start := time.Now()
	for c.delivered.Load() < accepted {
		if time.Since(start) > drainLimit {
			must(fmt.Errorf("delivered %d of %d in time", c.delivered.Load(), accepted))
		}
		time.Sleep(time.Millisecond)
	}
}

type phase struct {
	name        string
	service     *hdrhistogram.Histogram
	worstWaitNs int64
	refused     uint64
	cores       float64
}

func newPhases() []*phase {
	var phases []*phase
	for _, name := range []string{"healthy", "stopped", "after"} {
		phases = append(phases, &phase{name: name, service: hdrhistogram.New(1, 100_000_000_000, 3)})
	}
	return phases
}

// stamp writes the record's number into the id that the judge reads: `#SS:NNNNNNNNNN#`.
func stamp(value []byte, n uint64) {
	for at := 13; at >= 4; at-- {
		value[at] = byte('0' + n%10)
		n /= 10
	}
}

func newValue(source int) []byte {
	value := fmt.Appendf(nil, "#%02d:%010d#", source, 0)
	for len(value) < valueBytes {
		value = append(value, 'v')
	}
	return value
}

// follow is one goroutine's part of the schedule: it wakes every millisecond and makes all sends that
// are due, however late. A refused record is gone, and its number used again.
func follow(c *client, source int, start time.Time, perS int64, endsNs [3]int64, p page) []*phase {
	phases := newPhases()
	value := newValue(source)
	accepted := uint64(0)
	count := perS * endsNs[2] / 1_000_000_000
	due := func(n int64) int64 { return n * 1_000_000_000 / perS }
	for next := int64(0); next < count; {
		now := time.Since(start).Nanoseconds()
		for next < count && due(next) <= now {
			at := 0
			for at < 2 && due(next) >= endsNs[at] {
				at++
			}
			stamp(value, accepted)
			before := time.Since(start).Nanoseconds()
			isAccepted := c == nil || c.send(value)
			after := time.Since(start).Nanoseconds()
			of := phases[at]
			if isAccepted {
				accepted++
			} else {
				of.refused++
			}
			atomic.StoreUint64(p.word(source), accepted)
			_ = of.service.RecordValue(max(after-before, 1))
			of.worstWaitNs = max(of.worstWaitNs, after-due(next))
			next++
		}
		if next < count {
			wake := (now/1_000_000 + 1) * 1_000_000
			time.Sleep(time.Duration(wake - time.Since(start).Nanoseconds()))
		}
	}
	return phases
}

func cpu() time.Duration {
	var usage syscall.Rusage
	must(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func memoryPeakMib() int64 {
	var usage syscall.Rusage
	must(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return usage.Maxrss / 1024
}

func print(line map[string]any) {
	text, err := json.Marshal(line)
	must(err)
	fmt.Println(string(text))
}

func main() {
	words := os.Args[1:]
	if len(words) != 11 || words[0] != "child" {
		must(fmt.Errorf("usage: child CLIENT BROKERS TOPIC DIR PAGE RATE WINDOW_MS HEALTHY_S STOPPED_S AFTER_S"))
	}
	name, brokers, topic, p, rate := words[1], words[2], words[3], openPage(words[5]), number(words[6])
	var ends [3]time.Duration
	var endsNs [3]int64
	end := time.Duration(0)
	for at := range ends {
		end += time.Duration(number(words[8+at])) * time.Second
		ends[at], endsNs[at] = end, end.Nanoseconds()
	}
	var c *client
	if name != "pacer alone" {
		c = newClient(brokers, topic)
	}
	start, beginCPU := time.Now(), cpu()
	var parts [threads][]*phase
	var senders sync.WaitGroup
	for source := range threads {
		senders.Add(1)
		go func() {
			defer senders.Done()
			parts[source] = follow(c, source, start, rate/threads, endsNs, p)
		}()
	}
	atomic.StoreUint64(p.word(begunWord), 1)
	cpus := []time.Duration{beginCPU}
	for _, end := range ends {
		time.Sleep(end - time.Since(start))
		cpus = append(cpus, cpu())
	}
	senders.Wait()
	accepted := []uint64{}
	total := uint64(0)
	for source := range threads {
		accepted = append(accepted, atomic.LoadUint64(p.word(source)))
		total += accepted[source]
	}
	drain, atRisk := time.Now(), uint64(0)
	if c != nil {
		atRisk = total - c.delivered.Load()
		c.flush(total)
	}
	drained := time.Since(drain)
	refused := uint64(0)
	before := time.Duration(0)
	for at, of := range newPhases() {
		for _, part := range parts {
			of.service.Merge(part[at].service)
			of.worstWaitNs = max(of.worstWaitNs, part[at].worstWaitNs)
			of.refused += part[at].refused
		}
		refused += of.refused
		if lasted := ends[at] - before; lasted > 0 {
			of.cores = (cpus[at+1] - cpus[at]).Seconds() / lasted.Seconds()
		}
		before = ends[at]
		print(map[string]any{
			"phase": of.name, "sends": of.service.TotalCount(), "refused": of.refused,
			"p50": of.service.ValueAtQuantile(50), "p99": of.service.ValueAtQuantile(99),
			"p99.9": of.service.ValueAtQuantile(99.9), "max": of.service.Max(),
			"worst_wait_ms": float64(of.worstWaitNs) / 1e6, "cores": of.cores,
		})
	}
	print(map[string]any{
		"phase": "all", "accepted": accepted, "refused": refused, "at_risk": atRisk,
		"memory_mib": memoryPeakMib(), "cpu_s": (cpu() - beginCPU).Seconds(),
		"drained_ms": float64(drained.Microseconds()) / 1e3, "remarks": "",
	})
}
