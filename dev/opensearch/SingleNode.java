import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import org.opensearch.Version;
import org.opensearch.common.logging.LogConfigurator;
import org.opensearch.common.settings.Settings;
import org.opensearch.env.Environment;
import org.opensearch.node.InternalSettingsPreparer;
import org.opensearch.node.Node;
import org.opensearch.plugins.PluginInfo;

/**
 * One OpenSearch node for the tests, made from the libraries of the Maven repository, which has no
 * distribution with a start script. It speaks plain HTTP on 127.0.0.1 and has no security plugin.
 *
 * <p>Arguments: the node's folder (made when missing) and its HTTP port. It ends on SIGTERM.
 */
final class SingleNode extends Node {
    /** The modules that a distribution would load from its folder modules/. */
    private static final List<String> MODULES =
            List.of(
                    "org.opensearch.transport.Netty4ModulePlugin",
                    "org.opensearch.analysis.common.CommonAnalysisModulePlugin",
                    "org.opensearch.index.reindex.ReindexModulePlugin",
                    "org.opensearch.painless.PainlessModulePlugin",
                    "org.opensearch.index.mapper.MapperExtrasModulePlugin",
                    "org.opensearch.search.aggregations.matrix.MatrixAggregationModulePlugin",
                    "org.opensearch.join.ParentJoinModulePlugin",
                    "org.opensearch.ingest.common.IngestCommonModulePlugin");

    private SingleNode(Environment environment, Collection<PluginInfo> modules) {
        super(environment, modules, false);
    }

    private static PluginInfo module(String className) {
        return new PluginInfo(
                className,
                "module",
                Version.CURRENT.toString(),
                Version.CURRENT,
                "21",
                className,
                List.of(),
                false);
    }

    public static void main(String[] arguments) throws Exception {
        Path home = Path.of(arguments[0]);
        Files.createDirectories(home.resolve("config"));
        LogConfigurator.setNodeName("node-1");
        Settings settings =
                Settings.builder()
                        .put("path.home", home)
                        .put("network.host", "127.0.0.1")
                        .put("http.port", arguments[1])
                        .put("transport.port", 0)
                        .put("discovery.type", "single-node")
                        // On a nearly full disk every index would become read-only.
                        .put("cluster.routing.allocation.disk.threshold_enabled", false)
                        .build();
        Environment environment =
                InternalSettingsPreparer.prepareEnvironment(
                        settings, Map.of(), null, () -> "node-1");
        SingleNode node =
                new SingleNode(environment, MODULES.stream().map(SingleNode::module).toList());
        CountDownLatch closed = new CountDownLatch(1);
        Runtime.getRuntime()
                .addShutdownHook(
                        new Thread(
                                () -> {
                                    try {
                                        node.close();
                                    } catch (Exception e) {
                                        e.printStackTrace();
                                    }
                                    closed.countDown();
                                }));
        node.start();
        closed.await();
    }
}
