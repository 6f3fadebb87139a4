// Says what really is in Kafka, by Apache Kafka's own Java client: it shares no code with the
// client under test. Reads commands from standard input, one a line, fields apart by tabs, and
// answers each with one line: "ok<tab>..." or "error<tab>reason". Ends with its input.
//
//   cluster                                  -> the cluster's id
//   create TOPIC PARTITIONS [NAME=VALUE]...  -> nothing; waits until the topic can be used
//   place TOPIC NODES...                     -> like create; per partition its replicas, "2,1"; one in sync will do
//   grow TOPIC PARTITIONS                    -> nothing; more partitions
//   delete TOPIC                             -> nothing; waits until no broker asked shows it
//   nodes                                    -> the brokers that are there
//   controller                               -> the active controller
//   leaders TOPIC                            -> per partition leader:in-sync,..., leader -1 is none
//   ends TOPIC                               -> the end offset of each partition, in order
//   produce TOPIC PARTITION TIME KEY VALUE [NAME=VALUE]...   bytes in hex, "-" is null
//   scram USER PASSWORD                      -> nothing
//   forbid USER TOPIC OPERATION              -> nothing
//   permit TOPIC                             -> nothing; takes back what was forbidden on it
//   dump TOPIC FILE                          -> how many records were written to FILE
//
// FILE: per record, big-endian: partition int, offset long, timestamp long, key, value, number of
// headers int, then name and value of each; bytes are a length int (-1 is null) and the bytes.

import java.io.*;
import java.nio.charset.StandardCharsets;
import java.nio.file.*;
import java.time.Duration;
import java.util.*;
import java.util.concurrent.ExecutionException;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.acl.*;
import org.apache.kafka.common.errors.TopicExistsException;
import org.apache.kafka.common.errors.UnknownTopicOrPartitionException;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.resource.*;
import org.apache.kafka.common.serialization.*;

public class Oracle {
    private static final long READ_LIMIT_MS = 120_000;

    private final Properties base = new Properties();
    private final Admin admin;

    private Oracle(String brokers) {
        base.put("bootstrap.servers", brokers);
        base.put("reconnect.backoff.max.ms", "200");
        // A node that stands still costs one of these; then another one is asked.
        base.put("request.timeout.ms", "4000");
        base.put("default.api.timeout.ms", "120000");
        admin = Admin.create(base);
    }

    public static void main(String[] args) throws IOException {
        Oracle oracle = new Oracle(args[0]);
        BufferedReader in =
            new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line; (line = in.readLine()) != null; ) {
            String answer;
            try {
                answer = "ok\t" + oracle.answer(line.split("\t", -1));
            } catch (ExecutionException e) {
                answer = "error\t" + String.valueOf(e.getCause()).replaceAll("\\s", " ");
            } catch (Exception e) {
                answer = "error\t" + String.valueOf(e).replaceAll("\\s", " ");
            }
            System.out.println(answer);
            System.out.flush();
        }
        oracle.admin.close(Duration.ZERO);
    }

    private String answer(String[] words) throws Exception {
        switch (words[0]) {
            case "cluster": return admin.describeCluster().clusterId().get();
            case "create": return create(words);
            case "place": return place(words);
            case "grow": return grow(words);
            case "delete": return delete(words[1]);
            case "nodes": return nodes();
            case "controller":
                return Integer.toString(
                    admin.describeMetadataQuorum().quorumInfo().get().leaderId());
            case "leaders": return leaders(words[1]);
            case "ends": return ends(words[1]);
            case "produce": return produce(words);
            case "scram": return scram(words[1], words[2]);
            case "forbid": return forbid(words[1], words[2], words[3]);
            case "permit": return permit(words[1]);
            case "dump": return dump(words[1], words[2]);
            default: throw new IllegalArgumentException("unknown command " + words[0]);
        }
    }

    private String create(String[] words) throws Exception {
        Map<String, String> configs = new HashMap<>();
        for (int i = 3; i < words.length; i++) {
            String[] pair = words[i].split("=", 2);
            configs.put(pair[0], pair[1]);
        }
        int partitions = Integer.parseInt(words[2]);
        make(new NewTopic(words[1], Optional.of(partitions), Optional.empty()).configs(configs));
        return waitForLeaders(words[1], partitions);
    }

    private void make(NewTopic topic) throws Exception {
        try {
            admin.createTopics(List.of(topic)).all().get();
        } catch (ExecutionException e) {
            // The first try's answer may be lost with its broker: then it was made.
            if (!(e.getCause() instanceof TopicExistsException)) throw e;
        }
    }

    private String place(String[] words) throws Exception {
        Map<Integer, List<Integer>> replicas = new HashMap<>();
        for (int i = 2; i < words.length; i++) {
            List<Integer> nodes = new ArrayList<>();
            for (String node : words[i].split(",")) nodes.add(Integer.valueOf(node));
            replicas.put(i - 2, nodes);
        }
        // A partition with a single replica takes records from whoever wants all of them to have it.
        make(new NewTopic(words[1], replicas).configs(Map.of("min.insync.replicas", "1")));
        return waitForLeaders(words[1], replicas.size());
    }

    private String grow(String[] words) throws Exception {
        int partitions = Integer.parseInt(words[2]);
        admin.createPartitions(Map.of(words[1], NewPartitions.increaseTo(partitions))).all().get();
        return waitForLeaders(words[1], partitions);
    }

    private String delete(String topic) throws Exception {
        admin.deleteTopics(List.of(topic)).all().get();
        for (long end = System.currentTimeMillis() + 120_000; ; Thread.sleep(10)) {
            if (!admin.listTopics().names().get().contains(topic)) return "";
            if (System.currentTimeMillis() > end) throw new IOException("the topic stays");
        }
    }

    private String nodes() throws Exception {
        StringJoiner out = new StringJoiner("\t");
        for (var node : admin.describeCluster().nodes().get()) out.add(node.idString());
        return out.toString();
    }

    private String leaders(String topic) throws Exception {
        StringJoiner out = new StringJoiner("\t");
        var shown = admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic);
        for (var p : shown.partitions()) {
            StringJoiner isr = new StringJoiner(",");
            for (var node : p.isr()) isr.add(node.idString());
            out.add((p.leader() == null ? "-1" : p.leader().idString()) + ":" + isr);
        }
        return out.toString();
    }

    private String waitForLeaders(String topic, int partitions) throws Exception {
        // The controller has it; the broker shows it, with a leader for each partition, later.
        for (long end = System.currentTimeMillis() + 120_000; ; Thread.sleep(10)) {
            try {
                var shown = admin.describeTopics(List.of(topic)).allTopicNames().get();
                var all = shown.get(topic).partitions();
                if (all.size() == partitions && all.stream().allMatch(p -> p.leader() != null)) {
                    return "";
                }
            } catch (ExecutionException e) {
                if (!(e.getCause() instanceof UnknownTopicOrPartitionException)) throw e;
            }
            if (System.currentTimeMillis() > end) throw new IOException("topic has no leaders");
        }
    }

    private List<TopicPartition> partitions(String topic) throws Exception {
        int n = admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic)
            .partitions().size();
        List<TopicPartition> all = new ArrayList<>();
        for (int p = 0; p < n; p++) all.add(new TopicPartition(topic, p));
        return all;
    }

    private String ends(String topic) throws Exception {
        List<TopicPartition> all = partitions(topic);
        Map<TopicPartition, OffsetSpec> ask = new HashMap<>();
        for (TopicPartition p : all) ask.put(p, OffsetSpec.latest());
        var found = admin.listOffsets(ask).all().get();
        StringJoiner out = new StringJoiner("\t");
        for (TopicPartition p : all) out.add(Long.toString(found.get(p).offset()));
        return out.toString();
    }

    private String produce(String[] words) throws Exception {
        Properties p = new Properties();
        p.putAll(base);
        var bytes = new ByteArraySerializer();
        try (var producer = new KafkaProducer<byte[], byte[]>(p, bytes, bytes)) {
            List<Header> headers = new ArrayList<>();
            for (int i = 6; i < words.length; i++) {
                String[] pair = words[i].split("=", 2);
                headers.add(new RecordHeader(pair[0], unhex(pair[1])));
            }
            Integer partition = words[2].equals("-") ? null : Integer.valueOf(words[2]);
            Long time = words[3].equals("-") ? null : Long.valueOf(words[3]);
            var record = new ProducerRecord<byte[], byte[]>(
                words[1], partition, time, unhex(words[4]), unhex(words[5]), headers);
            return Long.toString(producer.send(record).get().offset());
        }
    }

    private String scram(String user, String password) throws Exception {
        ScramCredentialInfo info = new ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096);
        var change = new UserScramCredentialUpsertion(user, info, password);
        admin.alterUserScramCredentials(List.of(change)).all().get();
        return "";
    }

    private String forbid(String user, String topic, String operation) throws Exception {
        AclOperation what = AclOperation.fromString(operation);
        admin.createAcls(List.of(new AclBinding(
            new ResourcePattern(ResourceType.TOPIC, topic, PatternType.LITERAL),
            new AccessControlEntry("User:" + user, "*", what, AclPermissionType.DENY)))).all().get();
        return "";
    }

    private String permit(String topic) throws Exception {
        admin.deleteAcls(List.of(new AclBindingFilter(
            new ResourcePatternFilter(ResourceType.TOPIC, topic, PatternType.LITERAL),
            AccessControlEntryFilter.ANY))).all().get();
        return "";
    }

    private String dump(String topic, String file) throws Exception {
        Properties p = new Properties();
        p.putAll(base);
        p.put("auto.offset.reset", "none");
        p.put("enable.auto.commit", "false");
        p.put("max.poll.records", "20000");
        p.put("max.partition.fetch.bytes", "4194304");
        p.put("isolation.level", "read_uncommitted");
        var bytes = new ByteArrayDeserializer();
        long records = 0;
        try (var consumer = new KafkaConsumer<byte[], byte[]>(p, bytes, bytes);
             var out = new DataOutputStream(new BufferedOutputStream(
                 Files.newOutputStream(Path.of(file)), 1 << 20))) {
            List<TopicPartition> all = partitions(topic);
            consumer.assign(all);
            consumer.seekToBeginning(all);
            Map<TopicPartition, Long> ends = consumer.endOffsets(all);
            long limit = System.currentTimeMillis() + READ_LIMIT_MS;
            while (!all.stream().allMatch(t -> consumer.position(t) >= ends.get(t))) {
                if (System.currentTimeMillis() > limit) throw new IOException("reading took too long");
                for (ConsumerRecord<byte[], byte[]> r : consumer.poll(Duration.ofMillis(100))) {
                    out.writeInt(r.partition());
                    out.writeLong(r.offset());
                    out.writeLong(r.timestamp());
                    write(out, r.key());
                    write(out, r.value());
                    Header[] headers = r.headers().toArray();
                    out.writeInt(headers.length);
                    for (Header h : headers) {
                        write(out, h.key().getBytes(StandardCharsets.UTF_8));
                        write(out, h.value());
                    }
                    records++;
                }
            }
        }
        return Long.toString(records);
    }

    private static void write(DataOutputStream out, byte[] bytes) throws IOException {
        out.writeInt(bytes == null ? -1 : bytes.length);
        if (bytes != null) out.write(bytes);
    }

    private static byte[] unhex(String text) {
        return text.equals("-") ? null : HexFormat.of().parseHex(text);
    }
}
